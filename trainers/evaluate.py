"""The stage `evaluate`: image-text retrieval on the test split, for each finished run."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PairmillError
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

VERSION = 2

EVALUATION = "evaluation.json"
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
        path = table.folder / EVALUATION
        recipe = job.recipe.train[name]
        if reason := why_not(recipe.objectives):
            if name in job.only:
                raise PairmillError(f"the run {name!r} cannot rank: {reason}", "name another run")
            job.log("passed over", run=name, reason=reason)
            continue
        read = [recipe.features, *([recipe.objects] if recipe.text.tags and recipe.objects else [])]
        key = job.key(VERSION, table, kept, *map(job.dataset.features, read))
        if is_current(path, key):
            continue
        started = time.monotonic()
        store = FeatureStore(job.dataset.features(recipe.features))
        values = evaluate(job.dataset, name, store, job.recipe.engine.memory_limit)
        write_json(path, {"key": key, **values, "seconds": round(time.monotonic() - started, 3)})
        found = values["retrieval"]
        job.log("evaluated", run=name, **found)
        summaries.append(
            f"{name}: R@10 {found['t2i_r10']:.1%} text to image, {found['i2t_r10']:.1%} image to text "
            f"(chance {found['chance_r10']:.1%})"
        )
    return "; ".join(summaries) or UP_TO_DATE


def is_current(path: Path, key: str) -> bool:
    """Whether an evaluation is there and was made under `key`."""
    try:
        return bool(json.loads(path.read_text())["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


def evaluate(
    dataset: Dataset, name: str, store: FeatureStore, memory_limit: str = "4GB", storage: bool = True
) -> dict[str, Any]:
    """The finished run `name` on the test split: all its distinct images against all its distinct texts.

    "retrieval" as in `trainers.tasks.retrieval`, and some "examples"; where a matching head ranks the best by cosine
    again, "retrieval_by_cosine" is what it would be without. Without `storage` the store may hold the same features in
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
    found = {"retrieval": retrieval(scores, right), "examples": examples(texts, keys, scores, right)}
    if scorer.reranked:
        found["retrieval_by_cosine"] = retrieval(scorer.scores(tokens, keys, rerank=0), right)
    return found


def truth(texts: Sequence[str], images: int, paired: Sequence[str], image_of: np.ndarray) -> np.ndarray:
    """(texts, images) bool: which of the distinct texts and images are paired anywhere in the split."""
    text_at = {text: position for position, text in enumerate(texts)}
    right = np.zeros((len(texts), images), bool)
    right[[text_at[text] for text in paired], image_of] = True
    return right


def examples(texts: list[str], keys: list[str], scores: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """A few text queries, evenly spread over the texts: the best images' keys, best first, and the right ones."""
    shown = np.unique(np.linspace(0, len(texts) - 1, min(EXAMPLES, len(texts))).astype(int))
    return [
        {
            "text": texts[row],
            "top": [keys[column] for column in np.argsort(-scores[row], kind="stable")[:SHOWN]],
            "right": [keys[column] for column in np.flatnonzero(right[row])],
        }
        for row in shown.tolist()
    ]
