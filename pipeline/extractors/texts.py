"""The kept texts' embeddings by an open_clip extractor's own text tower, in a table beside its features.

With the images' `pooled` they make CLIP scores: `filter` takes both where its model is the same.
"""

import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clip_model import ClipModel, LoadedClip, extractors_clip, load_clip
from pipeline.extractors.plans import Plan
from pipeline.gpus import own_device
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Patch
from pipeline.signals.extracted import EMBEDDING, described, read_texts, texts_table
from pipeline.store.atomic import digest, replacing
from pipeline.store.sql import parquet, write_parquet
from pipeline.store.table import Shard, Table

VERSION = 1
BATCH = 64


def embed_texts(job: Job, name: str, plan: Plan) -> str:
    """Bring the table `features/<name>/texts` up to date; returns a summary, or `UP_TO_DATE`.

    A file an image shard: `uid`, `key`, and `embedding`, a unit vector of float32 in the joint space, for each kept
    pair. A pair's text that was embedded before, under the same model, is not embedded again.
    """
    section = plan.section
    assert isinstance(section, Patch)
    features = job.dataset.features(name)
    table, clip = texts_table(features), extractors_clip(section, plan.weights)
    info = described(job.dataset, features, clip.digest, section.autocast)
    model = digest(VERSION, clip.digest, section.autocast)
    before = table.folder / f"before-{model}"
    staged = job.dataset.root / ".staging" / f"texts-{name}.parquet"
    keys = {shard: digest(model, pairs) for shard, pairs in _stage(job, staged).items()}
    key = digest("texts", keys, info)
    try:
        if table.is_current(key):
            _forget(table)
            return UP_TO_DATE
        _keep(table, clip.digest, section.autocast, before)
        with table.writing(key, keys) as writing:
            work = partial(
                _embed_shard, section=section, clip=clip, staged=staged, folder=table.folder, before=before, keys=keys
            )
            engine = job.engine.on_gpus() if writing.todo else job.engine
            for shard in engine.map(work, writing.todo, f"extract: texts of {name}"):
                writing.add(shard)
            manifest = writing.commit(info)
    finally:
        staged.unlink(missing_ok=True)
    _forget(table)
    return f"{manifest.count('rows'):,} texts"


def _stage(job: Job, path: Path) -> dict[str, Any]:
    """Write the kept pairs (shard, key, uid, text) to `path`; returns a digest of each image shard's."""
    images = job.dataset.images
    shards = [shard.name for shard in images.manifest.shards]
    files = parquet([images.folder / f"{shard}.parquet" for shard in shards], ", filename = true")
    place = f"SELECT key, parse_filename(filename, true) AS shard FROM {files} WHERE key IS NOT NULL"
    with job.dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        with replacing(path) as partial_path:
            query = f"SELECT shard, key, uid, text FROM kept JOIN ({place}) USING (key) ORDER BY shard, uid"
            write_parquet(connection, query, partial_path)
        found = connection.execute(
            f"SELECT shard, count(*), bit_xor(md5_number(uid || key)) FROM {parquet([path])} GROUP BY shard"
        ).fetchall()
    digests = {shard: [count, str(pairs)] for shard, count, pairs in found}
    return {shard: digests.get(shard) for shard in shards}


def _keep(table: Table, model: str, autocast: str, before: Path) -> None:
    """Hold on to the files of the same model, which opening the table for writing may remove.

    Where an earlier call was cut off, `before` is there already, and stays until the table is whole.
    """
    if not table.exists or before.exists():
        return
    manifest = table.manifest
    if (manifest.info["model"], manifest.info["autocast"]) == (model, autocast):
        started = before.with_suffix(".partial")
        shutil.rmtree(started, ignore_errors=True)
        started.mkdir(parents=True)
        for path in table.paths(".parquet"):
            if path.is_file():
                (started / path.name).hardlink_to(path)
        started.rename(before)


def _forget(table: Table) -> None:
    """Take away what was held on to, by this call or by one that was cut off."""
    for folder in table.folder.glob("before-*"):
        shutil.rmtree(folder)


def _embed_shard(
    shard: str,
    *,
    section: Patch,
    clip: ClipModel,
    staged: Path,
    folder: Path,
    before: Path,
    keys: Mapping[str, str],
) -> Shard:
    rows = pq.read_table(staged, columns=["uid", "key", "text"], filters=[("shard", "=", shard)])
    old = before / f"{shard}.parquet"
    of_uid = read_texts(old) if old.is_file() else {}
    pairs = list(zip(rows["uid"].to_pylist(), rows["text"].to_pylist(), strict=True))
    of_text = _embedded(sorted({text for uid, text in pairs if uid not in of_uid}), section, clip)
    vectors = [of_uid[uid] if uid in of_uid else of_text[text] for uid, text in pairs]
    flat = np.concatenate(vectors) if vectors else np.empty(0, np.float32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), clip.width)
    with replacing(folder / f"{shard}.parquet") as path:
        table = pa.table({"uid": rows["uid"], "key": rows["key"], EMBEDDING: values})
        pq.write_table(table, path, compression={"uid": "zstd", "key": "zstd"}, use_dictionary=["key"])
    return Shard.of(folder, shard, keys[shard], [f"{shard}.parquet"], {"rows": len(pairs)})


def _embedded(texts: Sequence[str], section: Patch, clip: ClipModel) -> dict[str, np.ndarray]:
    """Text -> unit vector (D,)."""
    from pipeline.extractors.precision import autocast

    found: dict[str, np.ndarray] = {}
    for first in range(0, len(texts), BATCH):
        part = texts[first : first + BATCH]
        loaded = _loaded(clip)
        with autocast(section, loaded.device):
            found.update(zip(part, loaded.texts(part), strict=True))
    return found


@lru_cache(maxsize=1)
def _loaded(clip: ClipModel) -> LoadedClip:
    import torch

    torch.set_num_threads(1)  # the order of sums, and with it the last bits, depends on the number of threads
    return load_clip(clip, own_device())
