"""Stage `extract`: kept images -> `features/<extractor>/`, one Parquet shard an image shard, once a model.

A shard's images are decoded once and go through every extractor that still lacks them.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Grid, Pixel, Region
from pipeline.store.atomic import digest
from pipeline.store.features import ImageFeatures, write_features
from pipeline.store.sql import parquet
from pipeline.store.table import Shard, Writing
from pipeline.weights import UNTRAINED, Weights, download, find

VERSION = 1
BATCH = 16


@dataclass(frozen=True)
class Plan:
    """One extractor's part of the work."""

    section: Region | Grid | Pixel
    weights: Weights
    folder: Path
    shard_keys: dict[str, str]


def run(job: Job) -> str:
    wanted = job.selected(list(job.recipe.extract))
    keys_by_shard = _kept_keys(job)
    plans = {}
    for name in wanted:
        section = job.recipe.extract[name]
        plan = _plan(job, name, section, find(section), keys_by_shard)
        if plan.weights.sha256 == UNTRAINED and isinstance(section, Region) and not _is_current(job, name, plan):
            plan = _plan(job, name, section, download(section), keys_by_shard)
        if not _is_current(job, name, plan):
            plans[name] = plan
    if not plans:
        return UP_TO_DATE

    with ExitStack() as stack:
        writings = {
            name: stack.enter_context(job.dataset.features(name).writing(_key(plan), plan.shard_keys))
            for name, plan in plans.items()
        }
        todo = [shard for shard in keys_by_shard if any(shard in writing.todo for writing in writings.values())]
        missing = {shard: [name for name, writing in writings.items() if shard in writing.todo] for shard in todo}
        work = partial(
            _extract_shard,
            plans=plans,
            missing=missing,
            keys_by_shard=keys_by_shard,
            images=job.dataset.images.folder,
        )
        identities: dict[str, dict[str, Any]] = {}
        for done in job.engine.map(work, todo, "extract"):
            for name, (shard, identity) in done.items():
                writings[name].add(shard)
                identities[name] = identity
        return "; ".join(
            _commit(name, plans[name], writing, identities.get(name)) for name, writing in writings.items()
        )


def _kept_keys(job: Job) -> dict[str, list[str]]:
    """Image shard -> the keys in it that some kept pair needs, one for each content."""
    job.dataset.filtered.manifest  # noqa: B018 - says that `filter` must run first
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        keys: dict[str, list[str]] = {}
        for shard in job.dataset.images.manifest.shards:
            source = parquet([job.dataset.images.folder / f"{shard.name}.parquet"])
            rows = connection.execute(f"SELECT key FROM {source} SEMI JOIN kept USING (key) ORDER BY key").fetchall()
            keys[shard.name] = [key for (key,) in rows]
    return keys


def _plan(
    job: Job, name: str, section: Region | Grid | Pixel, weights: Weights, keys_by_shard: dict[str, list[str]]
) -> Plan:
    images = {shard.name: shard.files[0].sha256 for shard in job.dataset.images.manifest.shards}
    shard_keys = {
        shard: digest(VERSION, section.model_dump(), weights.digests, images[shard], keys)
        for shard, keys in keys_by_shard.items()
    }
    return Plan(section, weights, job.dataset.features(name).folder, shard_keys)


def _key(plan: Plan) -> str:
    return digest("extract", plan.shard_keys)


def _is_current(job: Job, name: str, plan: Plan) -> bool:
    return job.dataset.features(name).is_current(_key(plan))


def _extract_shard(
    shard: str,
    *,
    plans: dict[str, Plan],
    missing: dict[str, list[str]],
    keys_by_shard: dict[str, list[str]],
    images: Path,
) -> dict[str, tuple[Shard, dict[str, Any]]]:
    """Run one image shard through the extractors that lack it. Returns extractor -> (shard, identity)."""
    import torch

    from pipeline.extractors import BUILDERS

    torch.set_num_threads(1)  # the order of sums, and with it the last bits, depends on the number of threads
    names = missing[shard]
    extractors = {name: BUILDERS[plans[name].section.kind](plans[name].section, plans[name].weights) for name in names}
    rows: dict[str, list[ImageFeatures]] = {name: [] for name in names}
    unreadable = 0
    for batch in _batches(images / f"{shard}.tar", set(keys_by_shard[shard])):
        readable = [(key, image) for key, image in batch if image is not None]
        unreadable += len(batch) - len(readable)
        for name, extractor in extractors.items():
            arrays = extractor([image for _, image in readable]) if readable else []
            rows[name] += [
                ImageFeatures(key, len(values["features"]), values)
                for (key, _), values in zip(readable, arrays, strict=True)
            ]
    done = {}
    for name, extractor in extractors.items():
        plan = plans[name]
        written = write_features(plan.folder / f"{shard}.parquet", rows[name], extractor.columns)
        counts = {"rows": written, "unreadable": unreadable}
        made = Shard.of(plan.folder, shard, plan.shard_keys[shard], [f"{shard}.parquet"], counts)
        done[name] = (made, _identity(plan, extractor))
    return done


def _batches(tar: Path, keys: set[str]) -> Iterator[list[tuple[str, Any]]]:
    """(key, RGB image or None where it cannot be decoded) of the wanted images, in batches, in the tar's order."""
    import cv2
    import numpy as np
    import webdataset

    batch: list[tuple[str, Any]] = []
    for sample in webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False):
        if sample["__key__"] not in keys:
            continue
        image = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR)
        batch.append((sample["__key__"], None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _identity(plan: Plan, extractor: Any) -> dict[str, Any]:
    """Everything that a reader must agree with before it uses these features."""
    columns = {
        name: {"dtype": column.dtype, "shape": list(column.shape), "tensor": column.tensor}
        for name, column in extractor.columns.items()
    }
    return {
        "kind": plan.section.kind,
        "weights": plan.weights.name,
        "weights_sha256": plan.weights.sha256,
        "settings": plan.section.model_dump(mode="json"),
        "columns": columns,
        **extractor.identity,
    }


def _commit(name: str, plan: Plan, writing: Writing, identity: dict[str, Any] | None) -> str:
    if identity is None:  # every shard was already there when the last run was cut off
        from pipeline.extractors import BUILDERS

        identity = _identity(plan, BUILDERS[plan.section.kind](plan.section, plan.weights))
    manifest = writing.commit({"identity": identity})
    note = "" if identity["trained"] else " (UNTRAINED detector: no weights were found)"
    return f"{name}: {manifest.count('rows'):,} images{note}"
