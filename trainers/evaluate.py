"""The stage `evaluate`: image-text retrieval on the test split, for each finished run."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import evaluations
from pipeline.errors import PairmillError
from pipeline.evaluations import Evaluation, ImageQuery, TextQuery
from pipeline.job import UP_TO_DATE, Job
from pipeline.store.atomic import write_json
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.data.samples import Catalogue, pairs_in
from trainers.data.text import encode
from trainers.loop.device import best_device
from trainers.saved import load_run
from trainers.tasks.retrieval import retrieval
from trainers.tasks.scoring import Scorer, detector_of, why_not

VERSION = 3

SPLIT = "test"
EXAMPLES = 12
SHOWN = 5


def run(job: Job) -> str:
    """Evaluate the selected runs whose evaluation is not current; returns one line, or `UP_TO_DATE`.

    A run that cannot rank is passed over, or, where it was asked for by name, an error.
    """
    summaries = []
    kept = job.dataset.kept_digest((SPLIT,), job.recipe.engine.memory_limit)
    for name in job.selected(list(job.recipe.train)):
        table = job.dataset.run(name)
        path = table.folder / evaluations.FILE
        recipe = job.recipe.train[name]
        if reason := why_not(recipe.objectives):
            if name in job.only:
                raise PairmillError(f"the run {name!r} cannot rank: {reason}", "name another run")
            job.log("passed over", run=name, reason=reason)
            continue
        read = [recipe.features, *([recipe.objects] if recipe.text.tags and recipe.objects else [])]
        key = job.key(VERSION, table, kept, *map(job.dataset.features, read))
        made = evaluations.read(path)
        if made is not None and made.key == key:
            continue
        started = time.monotonic()
        store = FeatureStore(job.dataset.features(recipe.features))
        values = evaluate(job.dataset, name, store, job.recipe.engine.memory_limit)
        made = Evaluation(key=key, **values, seconds=round(time.monotonic() - started, 3))
        write_json(path, made.model_dump(exclude_none=True))
        found = values["retrieval"]
        job.log("evaluated", run=name, **found)
        summaries.append(
            f"{name}: R@10 {found['t2i_r10']:.1%} text to image, {found['i2t_r10']:.1%} image to text "
            f"(chance {found['chance_r10']:.1%})"
        )
    return "; ".join(summaries) or UP_TO_DATE


def evaluate(
    dataset: Dataset, name: str, store: FeatureStore, memory_limit: str = "4GB", storage: bool = True
) -> dict[str, Any]:
    """The finished run `name` on the test split: all its distinct images against all its distinct texts.

    The fields of an `Evaluation` but its key and seconds. Without `storage` the store may hold the same features in
    another dtype than the one that the run was trained on, so that one can be measured against the other.
    """
    saved = load_run(dataset.run(name), store, storage)
    detector = detector_of(dataset, saved.recipe)
    pairs = pairs_in(dataset, [Catalogue.of(read) for read in (store, detector) if read], SPLIT, memory_limit)
    if not len(pairs):
        raise PairmillError(
            f"the {SPLIT} split has no pair with features", "enlarge [split], or relax the recipe's rules"
        )
    paired, keys = pairs.texts.to_pylist(), [key.decode() for key in pairs.keys.tolist()]
    texts = sorted(set(paired))
    right = truth(texts, len(keys), paired, pairs.image_of)
    tokens = encode(saved.tokenizer, texts, saved.recipe.text.max_tokens)
    scorer = Scorer.of(saved, store, best_device(), detector)
    scores = scorer.scores(tokens, keys)
    found = {
        "retrieval": retrieval(scores, right),
        "examples": text_queries(texts, keys, scores, right),
        "image_examples": image_queries(texts, keys, scores, right),
    }
    if scorer.reranked:
        found["retrieval_by_cosine"] = retrieval(scorer.scores(tokens, keys, rerank=0), right)
    return found


def truth(texts: Sequence[str], images: int, paired: Sequence[str], image_of: np.ndarray) -> np.ndarray:
    """(texts, images) bool: which of the distinct texts and images are paired anywhere in the split."""
    text_at = {text: position for position, text in enumerate(texts)}
    right = np.zeros((len(texts), images), bool)
    right[[text_at[text] for text in paired], image_of] = True
    return right


def text_queries(texts: list[str], keys: list[str], scores: np.ndarray, right: np.ndarray) -> list[TextQuery]:
    """A few of the texts, evenly spread over them, as queries: the best images and the right ones."""
    return [
        TextQuery(text=texts[row], top=_best(keys, scores[row], right[row]), right=_those(keys, right[row]))
        for row in _spread(len(texts))
    ]


def image_queries(texts: list[str], keys: list[str], scores: np.ndarray, right: np.ndarray) -> list[ImageQuery]:
    """The other way round: a few of the images, evenly spread over them, the best texts and the right ones."""
    return [
        ImageQuery(
            image=keys[column],
            top=_best(texts, scores[:, column], right[:, column]),
            right=_those(texts, right[:, column]),
        )
        for column in _spread(len(keys))
    ]


def _spread(queries: int) -> list[int]:
    """Which queries are examples: chosen by place alone, whatever a run makes of them, so the same for all runs."""
    places: list[int] = np.unique(np.linspace(0, queries - 1, min(EXAMPLES, queries)).astype(int)).tolist()
    return places


def _best(answers: list[str], scores: np.ndarray, right: np.ndarray) -> list[str]:
    """Best first; of answers that score the same the wrong ones, as recall counts them."""
    return [answers[place] for place in np.lexsort((right, -scores))[:SHOWN].tolist()]


def _those(answers: list[str], right: np.ndarray) -> list[str]:
    return [answers[place] for place in np.flatnonzero(right).tolist()]
