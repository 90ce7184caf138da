"""The stage `evaluate`: image-text retrieval on the test split, for each finished run."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import ModelRecipe
from pipeline.store.atomic import write_json
from pipeline.store.features import FeatureStore
from trainers.retrieval import retrieval
from trainers.samples import read_pairs
from trainers.saved import load_run
from trainers.scoring import Scorer
from trainers.text import encode
from trainers.training import best_device

VERSION = 1

EVALUATION = "evaluation.json"
SPLIT = "test"
EXAMPLES = 12
SHOWN = 5


def run(job: Job) -> str:
    """Evaluate the selected runs whose evaluation is not current; returns one line, or `UP_TO_DATE`."""
    summaries = []
    kept = job.dataset.kept_digest((SPLIT,), job.recipe.engine.memory_limit)
    for name in job.selected(list(job.recipe.train)):
        table = job.dataset.run(name)
        path = table.folder / EVALUATION
        recipe = job.recipe.train[name]
        key = job.key(VERSION, table, kept, job.dataset.features(recipe.features))
        if is_current(path, key):
            continue
        started = time.monotonic()
        values = _evaluate(job, name, recipe)
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


def _evaluate(job: Job, name: str, recipe: ModelRecipe) -> dict[str, Any]:
    """All distinct images of the split against all its distinct texts."""
    store = FeatureStore(job.dataset.features(recipe.features))
    saved = load_run(job.dataset.run(name), store)
    pairs = read_pairs(job.dataset, store, SPLIT, job.recipe.engine.memory_limit)
    if not len(pairs):
        raise PairmillError(
            f"the {SPLIT} split has no pair with features", "enlarge [split], or relax the recipe's rules"
        )
    texts, keys = sorted(set(pairs.texts)), sorted(set(pairs.keys))
    right = truth(texts, keys, pairs.texts, pairs.keys)
    tokens = encode(saved.tokenizer, texts, saved.recipe.text.max_tokens)
    scores = Scorer(saved.model, store, saved.recipe.vision.kind, best_device()).scores(tokens, keys)
    return {"retrieval": retrieval(scores, right), "examples": examples(texts, keys, scores, right)}


def truth(texts: list[str], keys: list[str], paired_texts: tuple[str, ...], paired_keys: tuple[str, ...]) -> np.ndarray:
    """(texts, images) bool: which of the distinct texts and images are paired anywhere in the split."""
    text_at = {text: position for position, text in enumerate(texts)}
    key_at = {key: position for position, key in enumerate(keys)}
    right = np.zeros((len(texts), len(keys)), bool)
    for text, key in zip(paired_texts, paired_keys, strict=True):
        right[text_at[text], key_at[key]] = True
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
