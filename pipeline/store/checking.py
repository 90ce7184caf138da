"""Whether a file of a table is as it was written, and holds what its kind promises.

A file must be there, with its size and its sha256. Parquet must be readable to its end, vectors in it finite; features
must have the right checksums and be finite, boxes in [0, 1] and classes such as the detector has; a tar must hold the
images that its metadata name.
"""

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store.atomic import file_sha256
from pipeline.store.features.columns import Column, identity_digest
from pipeline.store.features.shard import FeatureShard
from pipeline.store.table import FAILED_SUFFIX, Manifest, Shard, ShardFile

ROUNDING = 1e-3
"""By how much a probability that came through float16 may pass 1."""
_PICTURE = frozenset({"jpg", "txt", "json"})


class DamagedError(Exception):
    """What is wrong with a file."""


def is_features(manifest: Manifest) -> bool:
    """Whether a table holds an extractor's features."""
    return "columns" in manifest.info.get("identity", {})


def check_file(path: Path, file: ShardFile, manifest: Manifest, shard: Shard) -> None:
    """Read one file of a shard. Raises DamagedError, or what a reader of features raises: PairmillError."""
    if Path(file.name).name != file.name:
        raise DamagedError("its manifest names a file outside of its folder")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DamagedError("it is missing") from None
    if size != file.bytes:
        raise DamagedError(f"it has {size:,} bytes, and was written with {file.bytes:,}")
    same = file_sha256(path) == file.sha256
    _check_content(path, manifest, shard)  # it may say more closely what differs
    if not same:
        raise DamagedError("its bytes are not those that were written (its sha256 differs)")


def _check_content(path: Path, manifest: Manifest, shard: Shard) -> None:
    if path.name.endswith(FAILED_SUFFIX):
        _check_rows(_read_parquet(path), shard.counts.get("failed"))
    elif path.suffix == ".parquet" and is_features(manifest):
        _check_features(path, manifest.info["identity"], shard)
    elif path.suffix == ".parquet":
        _read_parquet(path)
    elif path.suffix == ".tar":
        _check_pictures(path)
    elif path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise DamagedError(f"it is no JSON ({error})") from None
    elif path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            raise DamagedError(f"it is no safetensors ({error})") from None


def _check_rows(rows: int, stated: int | None) -> None:
    if stated is not None and rows != stated:
        raise DamagedError(f"it has {rows:,} rows, and its manifest says {stated:,}")


def _read_parquet(path: Path) -> int:
    """Read it all, a row group at a time; returns the rows."""
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                rows.validate(full=True)
                _check_vectors(rows)
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"it cannot be read ({str(error).splitlines()[0]})") from None


def _check_vectors(rows: pa.Table) -> None:
    """Embeddings of images and texts are to be finite."""
    for name in rows.column_names:
        kind = rows.schema.field(name).type
        if hasattr(kind, "value_type") and pa.types.is_floating(kind.value_type):
            finite = pc.all(pc.is_finite(pc.list_flatten(rows[name]))).as_py()
            if finite is False:
                raise DamagedError(f"{name} holds NaN or infinity")


def _check_features(path: Path, identity: dict[str, Any], shard: Shard) -> None:
    columns = {name: Column.of(described) for name, described in identity["columns"].items()}
    features = FeatureShard(path, columns, identity_digest(identity))
    features.check()
    _check_rows(len(features), shard.counts.get("rows"))
    regions = [name for name, column in columns.items() if name in _REGIONS and not column.tensor]
    classes = len(identity.get("classes") or ()) or np.iinfo(np.int32).max
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups if regions else 0):
            rows = file.read_row_group(group, columns=["key", "n", *regions])
            owners = np.repeat(rows["key"].to_numpy(), rows["n"].to_numpy())
            for name in regions:
                values = rows[name].combine_chunks().flatten().to_numpy().reshape(len(owners), -1)
                wrong = np.flatnonzero(~_is_sound(name, values, classes))
                if len(wrong):
                    raise DamagedError(f"{name} of image {owners[wrong[0]]} {_REGIONS[name]}")


_REGIONS = {
    "boxes": "do not lie in [0, 1], or end before they begin",
    "confidences": "are not between 0 and 1",
    "topk_values": "are not between 0 and 1",
    "classes": "are none of the detector's",
    "topk_ids": "are none of the detector's",
}
"""Columns of regions, and what is said where they do not hold what they promise."""


def _is_sound(name: str, values: np.ndarray, classes: int) -> np.ndarray:
    """(regions, numbers a region) -> (regions,) bool."""
    if name in ("classes", "topk_ids"):
        least = -1 if name == "classes" else 0  # the box of the whole image has no class
        return np.all((values >= least) & (values < classes), axis=1)
    if name == "boxes":
        ordered = values[:, :2] <= values[:, 2:]
        return np.all((values >= 0) & (values <= 1), axis=1) & np.all(ordered, axis=1)
    return np.all((values >= 0) & (values <= 1 + ROUNDING), axis=1)


def _check_pictures(path: Path) -> None:
    """A tar of images must hold those that the Parquet beside it says are there, and no others."""
    members: dict[str, Counter[str]] = {}
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                members.setdefault(key, Counter())[suffix] += 1
            raw.seek(tar.offset)
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes it for the end
                raise DamagedError(f"a header at byte {tar.offset:,} is damaged")
    except tarfile.TarError as error:
        raise DamagedError(f"it cannot be read ({error})") from None
    try:
        table = pq.read_table(path.with_suffix(".parquet"), columns=["key", "status"])
    except (pa.ArrowException, OSError):
        return  # the Parquet is a file of the shard too, and is named by itself
    named = {row["key"] for row in table.to_pylist() if row["status"] == "ok"}
    _same(members.keys() - named, "holds {}, which its metadata do not name")
    _same(named - members.keys(), "lacks {}, which its metadata name")
    _same({key for key, suffixes in members.items() if suffixes != Counter(_PICTURE)}, "holds {} in part, or twice")


def _same(keys: set[str], what: str) -> None:
    if keys:
        more = f" and {len(keys) - 1:,} more images" if len(keys) > 1 else ""
        raise DamagedError("it " + what.format(f"image {min(keys)}{more}"))
