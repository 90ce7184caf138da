"""The stage `align`: how well the text of each pair fits its image under a run of our own -> `signals/alignment`.

For `filter`'s rules on `alignment`: the cosine where the run has a joint space, else the probability of a match, in
[0, 1], by its matching head. Scored is every pair that `filter` judges and whose image has features; the others
have no score, and a rule lets them pass. A pair is scored once for a run: one that then falls by its score must not
come back when its features are gone.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import ModelRecipe
from pipeline.signals.judged import JUDGED
from pipeline.signals.whole import write_whole
from pipeline.store.features import FeatureStore
from trainers.data.text import encode
from trainers.loop.device import best_device
from trainers.saved import load_run
from trainers.tasks.scoring import Scorer, detector_of, why_not

VERSION = 1
BLOCK = 256  # pairs, in order of their images

_PAIRS = f"""
SELECT judged.uid, judged.text, contents.key FROM ({JUDGED}) AS judged JOIN contents USING (sha256)
ORDER BY contents.key, judged.uid"""


def run(job: Job) -> str:
    """Score the pairs under the run that `[filter] alignment` names; returns one line, or `UP_TO_DATE`."""
    name, recipe = _chosen(job)
    dataset, table = job.dataset, job.dataset.signals("alignment", "align")
    key = job.key(VERSION, dataset.run(name), dataset.pairs, dataset.screened, dataset.images)
    if table.is_current(key):
        return UP_TO_DATE
    info = {"pairs": dataset.pairs.manifest.digest, "images": dataset.images.manifest.digest, "run": name}
    write_whole(table, key, lambda: _rows(job, name, recipe), info)
    return f"{table.manifest.count('rows'):,} pairs scored by {name}"


def _chosen(job: Job) -> tuple[str, ModelRecipe]:
    name = job.recipe.filter.alignment
    if name is None or name not in job.recipe.train:
        there = ", ".join(job.recipe.train) or "none"
        raise PairmillError(
            f"[filter] alignment names {'no run' if name is None else f'the run {name!r}'}; [train] has {there}",
            "name a run that is trained with itc, vse or itm",
        )
    recipe = job.recipe.train[name]
    if reason := why_not(recipe.objectives):
        raise PairmillError(f"the run {name!r} cannot score: {reason}", "name another run")
    return name, recipe


def _rows(job: Job, name: str, recipe: ModelRecipe) -> pa.Table:
    store = FeatureStore(job.dataset.features(recipe.features))
    saved = load_run(job.dataset.run(name), store)
    detector = detector_of(job.dataset, recipe)
    scorer = Scorer.of(saved, store, best_device(), detector)
    uids: list[str] = []
    scores: list[np.ndarray] = [np.empty(0, np.float32)]
    for block in _blocks(job, [store, *([detector] if detector else [])]):
        tokens = encode(saved.tokenizer, block["text"].to_pylist(), saved.recipe.text.max_tokens)
        uids += block["uid"].to_pylist()
        scores.append(scorer.pairs(tokens, block["key"].to_pylist()))
    return pa.table({"uid": pa.array(uids, pa.string()), "alignment": pa.array(np.concatenate(scores))})


def _blocks(job: Job, stores: Sequence[FeatureStore]) -> Iterator[pa.Table]:
    """(uid, text, key of the features) of the pairs whose image has features, at most BLOCK at a time."""
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        for batch in connection.sql(_PAIRS).to_arrow_reader(BLOCK):
            there = pa.array([all(key in store for store in stores) for key in batch["key"].to_pylist()], pa.bool_())
            block = pa.Table.from_batches([batch.filter(there)])
            if block.num_rows:
                yield block
