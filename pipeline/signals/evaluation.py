"""Images of the corpus that are in an evaluation set as well: by perceptual hash, and by embedding.

An evaluation set is a folder of pictures or a WebDataset tar. Its pictures are shrunk as the download shrinks, and then
measured like the images of the corpus.
"""

import glob
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.signals.clip import read_embeddings
from pipeline.signals.hamming import ALWAYS, NEVER, nearest_earlier
from pipeline.signals.images import Source
from pipeline.signals.pictures import SUFFIXES
from pipeline.signals.whole import write_whole
from pipeline.store.atomic import digest, replacing
from pipeline.store.table import Shard, Table

VERSION = 1
_FILES_PER_SHARD = 1000
_ROWS = 4096  # so many evaluation pictures are compared with at once


def evaluation_shards(places: tuple[str, ...]) -> dict[str, Source]:
    """The pictures of folders, tars and globs of them, in shards. Raises PairmillError where a place holds none.

    Content is told by name, size and time of change: a set may be large, and is read once only.
    """
    if not places:
        raise PairmillError(
            "these rules compare with evaluation images, and the recipe names none", "[filter] evaluation"
        )
    sources: list[Source] = []
    for place in places:
        found = [Path(path) for path in sorted(glob.glob(place))]
        before = len(sources)
        for path in found:
            files = sorted(each for each in path.rglob("*") if _is_picture(each)) if path.is_dir() else []
            parts = [tuple(files[first : first + _FILES_PER_SHARD]) for first in range(0, len(files), _FILES_PER_SHARD)]
            sources += [Source(part, _stamps(part)) for part in parts]
            if path.is_file():
                sources.append(Source(path, _stamps((path,))))
        if len(sources) == before:
            raise PairmillError(f"[filter] evaluation: there are no pictures at {place}", "a folder, a tar, or a glob")
    return {f"{index:05d}": source for index, source in enumerate(sources)}


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _stamps(paths: tuple[Path, ...]) -> str:
    return digest([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths])


def unreadable(pictures: Table) -> list[str]:
    """Names of the evaluation pictures that could not be decoded: their rows hold NULLs."""
    tables = [pq.read_table(path) for path in pictures.paths(".parquet")]
    return [key for table in tables for key in table.filter(table.columns[1].is_null())["key"].to_pylist()]


def find_evaluation_hashes(job: Job, hashes: Table, pictures: Table, radius: int, table: Table) -> None:
    """Bring `table` (key, evaluation_distance, evaluation_of) up to date: a row for each image within the radius."""

    def rows() -> pa.Table:
        images, evaluation = _hashes(hashes), _hashes(pictures)
        names = evaluation["key"].to_numpy(zero_copy_only=False)
        # Equal ones are one; the first of their names is told.
        wanted, first = np.unique(evaluation["phash"].to_numpy(), return_index=True)
        order = np.argsort(first)
        wanted, first = wanted[order], first[order]
        sequence = np.concatenate([wanted, images["phash"].to_numpy()])
        joins = np.full(len(sequence), NEVER)
        joins[: len(wanted)] = ALWAYS
        found = nearest_earlier(sequence, radius, joins)
        distance, position = found.distance[len(wanted) :], found.position[len(wanted) :]
        near = np.flatnonzero(distance >= 0)
        return pa.table(
            {
                "key": images["key"].take(near),
                "evaluation_distance": pa.array(distance[near]),
                "evaluation_of": pa.array(names[first[position[near]]], pa.string()),
            }
        )

    write_whole(table, job.key(VERSION, "evaluation_hashes", radius, hashes, pictures), rows)


def _hashes(table: Table) -> pa.Table:
    read = pa.concat_tables([pq.read_table(path) for path in table.paths(".parquet")])
    return read.filter(read["phash"].is_valid()).combine_chunks()


def compare_with_evaluation(job: Job, embeddings: Table, pictures: Table, table: Table) -> None:
    """Bring `table` (key, evaluation_cosine, evaluation_like) up to date: each image's nearest evaluation picture."""
    common = job.key(VERSION, "evaluation_cosine", pictures)
    keys = {shard.name: digest(common, shard.files[0].sha256) for shard in embeddings.manifest.shards}
    key = digest("evaluation_cosine", keys)
    if table.is_current(key):
        return
    with table.writing(key, keys) as writing:
        compare = partial(
            _compare_shard,
            embeddings=embeddings.folder,
            pictures=tuple(pictures.paths(".parquet")),
            folder=table.folder,
            keys=keys,
        )
        for shard in job.engine.map(compare, writing.todo, "filter: evaluation images"):
            writing.add(shard)
        writing.commit()


def _compare_shard(
    name: str, *, embeddings: Path, pictures: tuple[Path, ...], folder: Path, keys: Mapping[str, str]
) -> Shard:
    import torch

    torch.set_num_threads(1)  # see pipeline.clip_model.load_clip
    images, vectors = read_embeddings(embeddings / f"{name}.parquet")
    own = torch.from_numpy(vectors)
    best, like = torch.full((len(images),), -2.0), np.full(len(images), None, object)
    for path in pictures if images else ():
        names, others = read_embeddings(path)
        for first in range(0, len(names), _ROWS):
            cosine, position = (own @ torch.from_numpy(others[first : first + _ROWS]).t()).max(dim=1)
            nearer = (cosine > best).numpy()
            best = torch.maximum(best, cosine)
            like[nearer] = np.array(names[first : first + _ROWS], object)[position.numpy()[nearer]]
    cosines = [value if name is not None else None for value, name in zip(best.tolist(), like, strict=True)]
    rows = {
        "key": pa.array(images, pa.string()),
        "evaluation_cosine": pa.array(cosines, pa.float32()),
        "evaluation_like": pa.array(like, pa.string()),
    }
    with replacing(folder / f"{name}.parquet") as path:
        pq.write_table(pa.table(rows), path, compression="zstd")
    return Shard.of(folder, name, keys[name], [f"{name}.parquet"], {"rows": len(images)})
