"""Image embeddings of open_clip's CLIP, kept, and the score of each pair: the cosine of its image and its text.

What `extract` has of the same model (`pipeline.signals.extracted`) is not computed again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clip_model import ClipModel, LoadedClip, find_clip, load_clip
from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.recipe import Clip
from pipeline.signals.extracted import EMBEDDING, Extracted, find_extracted, vectors_of
from pipeline.signals.images import Measure
from pipeline.signals.judged import JUDGED
from pipeline.store.atomic import digest, replacing
from pipeline.store.sql import open_duckdb, parquet, write_parquet
from pipeline.store.table import Shard, Table

VERSION = 1


@dataclass(frozen=True)
class Model:
    """A CLIP, and how many pictures or texts it is given at once: the last bits hang on that."""

    clip: ClipModel
    batch_size: int


def find_model(section: Clip | None) -> Model:
    """The recipe's CLIP. Raises PairmillError where it names none, or an architecture that is not known."""
    if section is None:
        raise PairmillError(
            "these rules need embeddings, and the recipe names no CLIP", "add [filter.clip] with model and pretrained"
        )
    return Model(find_clip(section.model, section.pretrained), section.batch_size)


@lru_cache(maxsize=1)
def _loaded(clip: ClipModel) -> LoadedClip:
    return load_clip(clip)


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors (D,) float32 in CLIP's joint space."""

    model: Model
    name: str = "embeddings"

    @property
    def batch_size(self) -> int:
        return self.model.batch_size

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(EMBEDDING, pa.list_(pa.float32(), self.model.clip.width))])

    @property
    def identity(self) -> Any:
        return ["embeddings", VERSION, self.model.clip.digest, self.model.batch_size]

    def measurer(self) -> Measure:
        loaded = _loaded(self.model.clip)

        def measure(pictures: Sequence[np.ndarray]) -> dict[str, pa.Array]:
            vectors = loaded.images(pictures)
            return {EMBEDDING: pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), self.model.clip.width)}

        return measure


def read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    """The keys of a shard's readable pictures, and their (n, D) float32 vectors."""
    table = pq.read_table(path, columns=["key", EMBEDDING])
    table = table.filter(table[EMBEDDING].is_valid())
    return table["key"].to_pylist(), vectors_of(table)


def score_pairs(job: Job, model: Model, embeddings: Table, table: Table) -> None:
    """Bring `table` (uid, clip_score) up to date for every judged pair with a readable image; a file an image shard."""
    dataset = job.dataset
    common = job.key(VERSION, model.clip.digest, model.batch_size, dataset.pairs, dataset.screened)
    keys = {shard.name: digest(common, shard.files[0].sha256) for shard in embeddings.manifest.shards}
    key = digest("clip_score", keys)
    if table.is_current(key):
        return
    with table.writing(key, keys) as writing:
        staged = dataset.root / ".staging" / "judged.parquet"
        if writing.todo:
            with dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
                with replacing(staged) as path:
                    write_parquet(connection, f"SELECT key, uid, text FROM ({JUDGED}) ORDER BY key, uid", path)
        score = partial(
            _score_shard,
            model=model,
            judged=staged,
            embeddings=embeddings.folder,
            extracted=find_extracted(dataset, model.clip.digest),
            folder=table.folder,
            keys=keys,
        )
        for shard in job.engine.map(score, writing.todo, "filter: clip scores"):
            writing.add(shard)
        writing.commit()
    staged.unlink(missing_ok=True)


def _score_shard(
    name: str,
    *,
    model: Model,
    judged: Path,
    embeddings: Path,
    extracted: Extracted | None,
    folder: Path,
    keys: Mapping[str, str],
) -> Shard:
    images, vectors = read_embeddings(embeddings / f"{name}.parquet")
    place = {key: row for row, key in enumerate(images)}
    rows: list[tuple[str, str, str]] = []
    if images:
        # The staged pairs are sorted by key: all but this shard's row groups are passed over by their statistics.
        with open_duckdb() as connection:
            connection.execute("SET threads = 1")
            query = f"SELECT key, uid, text FROM {parquet([judged])} WHERE key BETWEEN ? AND ? ORDER BY uid"
            found = connection.execute(query, [min(images), max(images)]).fetchall()
        rows = [row for row in found if row[0] in place]
    of_uid = extracted.of_texts(name) if extracted else {}
    of_text = _embedded(sorted({text for _, uid, text in rows if uid not in of_uid}), model)
    scores = [float(vectors[place[key]] @ (of_uid[uid] if uid in of_uid else of_text[text])) for key, uid, text in rows]
    with replacing(folder / f"{name}.parquet") as path:
        scored = {
            "uid": pa.array([uid for _, uid, _ in rows], pa.string()),
            "clip_score": pa.array(scores, pa.float32()),
        }
        pq.write_table(pa.table(scored), path, compression="zstd")
    return Shard.of(folder, name, keys[name], [f"{name}.parquet"], {"rows": len(scores)})


def _embedded(texts: Sequence[str], model: Model) -> dict[str, np.ndarray]:
    """Text -> unit vector (D,)."""
    found: dict[str, np.ndarray] = {}
    for first in range(0, len(texts), model.batch_size):
        part = texts[first : first + model.batch_size]
        found.update(zip(part, _loaded(model.clip).texts(part), strict=True))
    return found
