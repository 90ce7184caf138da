"""Pairs put by in blocks, each in order of uid, and merged by ranges of uids: a sort of any size in little memory.

A block is an Arrow file that is mapped and not read: what it holds of a range lies together and is found by bisection.
"""

import json
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import PairmillError
from pipeline.lists.pairing import OWN_COLUMNS, UID_BYTES, uid_order
from pipeline.lists.row_groups import RowGroups

STRETCH_ROWS = 262_144
STRETCH_BYTES = 100_000_000
SUFFIX = ".arrow"
REPEATED = pa.schema({"uid": pa.string(), "file": pa.string(), "row": pa.int64()})


def put_by(pairs: pa.Table, path: Path) -> None:
    """Write a block's pairs (`pipeline.lists.pairing.Pairs.table`), if there are any."""
    if len(pairs):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pairs.schema) as writer:
            writer.write_batch(pairs.combine_chunks().to_batches()[0])


def _blocks(staging: Path) -> list[Path]:
    """In the order of the lists' paths and of their rows."""
    return sorted(staging.glob(f"*/*{SUFFIX}"))


def staged_schema(staging: Path, required: dict[str, str]) -> pa.Schema:
    """The columns of `pairs`: ours, and between them the lists' own by name, each of a type that holds all its values.

    `required` maps columns that some list must have to the recipe's keys that name them.
    """
    types: dict[str, set[pa.DataType]] = {}
    spelling: dict[str, str] = {}
    for path in _blocks(staging):
        with pa.memory_map(str(path)) as file:
            for field in pa.ipc.open_file(file).schema:
                if field.name not in OWN_COLUMNS:
                    lowered = field.name.lower()
                    types.setdefault(lowered, set()).add(field.type)
                    spelling[lowered] = min(spelling.get(lowered, field.name), field.name)
    for name, key in required.items():
        if name.lower() not in types:
            raise PairmillError(f"no list has the column that {key} names", f"correct {key} in [ingest]")
    texts = [(name, pa.string()) for name in ("uid", "url", "text", "original")]
    others = [(spelling[lowered], common_type(types[lowered])) for lowered in sorted(types)]
    return pa.schema([*texts, *others, ("file", pa.string()), ("row", pa.int64())])


def common_type(types: set[pa.DataType]) -> pa.DataType:
    """The type that holds the values of all of these; text where no other does."""
    known = sorted((type for type in types if not pa.types.is_null(type)), key=str)
    innermost = [_innermost(type) for type in known]
    if len(known) > 1 and any(pa.types.is_nested(type) or type == pa.uint64() for type in innermost):
        return pa.string()  # Arrow would lose digits of large numbers, and cannot cast between structs
    try:
        schemas = [pa.schema({"": type}) for type in known]
        unified = pa.unify_schemas(schemas, promote_options="permissive").field(0).type if known else pa.string()
    except pa.ArrowException:
        return pa.string()
    # Lists that were all empty: nothing says of what.
    return pa.string() if pa.types.is_null(_innermost(unified)) else unified


def _innermost(type: pa.DataType) -> pa.DataType:
    """What a list of lists is of in the end; another type itself."""
    return _innermost(type.value_type) if pa.types.is_list(type) or pa.types.is_large_list(type) else type


def conformed(column: pa.Array, type: pa.DataType) -> pa.Array:
    """A column as `common_type` has it. Raises pyarrow.ArrowException where a value does not fit."""
    if column.type == type:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), type)
    try:
        return column.cast(type, safe=False)
    except pa.ArrowException:
        values = column.to_pylist()
        texts = [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]
        return pa.array(texts, type)


@dataclass(frozen=True)
class Stretches:
    """The shards' ranges of uids, each parted evenly: uids are digests, so a stretch holds about as much as another."""

    shards: int
    each: int

    @classmethod
    def of(cls, staging: Path, rows: int, shards: int) -> "Stretches":
        size = sum(path.stat().st_size for path in _blocks(staging))
        return cls(shards, 1 + max(rows // STRETCH_ROWS, size // STRETCH_BYTES) // shards)

    def bounds(self, shard: int) -> list[tuple[int, int]]:
        """[low, high) of each stretch, as whole numbers of 128 bits; a shard's ends are told by the first 16 bits."""
        ends = [-(-(shard + end) * 2**16 // self.shards) << 112 for end in (0, 1)]
        cuts = [ends[0] + (ends[1] - ends[0]) * cut // self.each for cut in range(self.each + 1)]
        return list(pairwise(cuts))


@dataclass(frozen=True)
class _Slice:
    """What a block holds of a stretch: every row's uid and number, and the pairs without what repeats inside it."""

    path: str
    uids: bytes
    rows: np.ndarray
    is_first: np.ndarray
    pairs: pa.Table


def merge(
    staging: Path, shard: int, stretches: Stretches, schema: pa.Schema, paths: dict[str, str], to: tuple[Path, Path]
) -> tuple[int, int]:
    """Write a shard's pairs, sorted by uid, and beside them its further copies, by uid, file, row.

    Of several copies the first stays, by file, then row. `paths` maps the folders in `staging` to their lists.
    Returns (how many pairs, how many further copies).
    """
    blocks = _blocks(staging)
    with RowGroups(to[0], schema) as pairs, RowGroups(to[1], REPEATED) as repeated:
        for low, high in stretches.bounds(shard):
            slices = list(_slices(blocks, low, high, schema, paths))
            if slices:
                _merge_slices(slices, pairs, repeated)
    return pairs.rows, repeated.rows


def _merge_slices(slices: list[_Slice], pairs: RowGroups, repeated: RowGroups) -> None:
    together = b"".join(slice.uids for slice in slices)
    order = uid_order(together)
    uids = np.frombuffer(together, f"V{UID_BYTES}")[order]
    rows = np.concatenate([slice.rows for slice in slices])[order]
    files = np.repeat(np.arange(len(slices)), [len(slice.rows) for slice in slices])[order]
    paths = pa.array([slice.path for slice in slices])

    def origin(where: np.ndarray) -> dict[str, pa.Array]:
        return {"uid": _hex(uids[where]), "file": paths.take(pa.array(files[where])), "row": pa.array(rows[where])}

    is_first = np.append(True, uids[1:] != uids[:-1])
    # The first of all copies is the first of its slice, which holds its pair.
    held = np.cumsum(np.concatenate([slice.is_first for slice in slices]))[order] - 1
    kept = pa.concat_tables([slice.pairs for slice in slices]).combine_chunks().take(pa.array(held[is_first]))
    firsts = pa.table(origin(np.flatnonzero(is_first)))
    for name in kept.column_names:
        firsts = firsts.append_column(name, kept[name])
    pairs.add(firsts)
    further = np.flatnonzero(~is_first)
    for begin in range(0, len(further), STRETCH_ROWS):
        repeated.add(pa.table(origin(further[begin : begin + STRETCH_ROWS])))


def _slices(blocks: list[Path], low: int, high: int, schema: pa.Schema, paths: dict[str, str]) -> Iterator[_Slice]:
    """Copies of what the blocks hold of [low, high); each block is mapped for this one moment."""
    held = [field for field in schema if field.name not in ("uid", "file", "row")]
    for path in blocks:
        with pa.memory_map(str(path)) as file:
            block = pa.ipc.open_file(file).get_batch(0)
            uids = memoryview(block.column("uid").buffers()[1])
            begin, end = (_position(uids, block.num_rows, bound) for bound in (low, high))
            if begin == end:
                continue
            inside = bytes(uids[begin * UID_BYTES : end * UID_BYTES])
            keys = np.frombuffer(inside, f"V{UID_BYTES}")
            is_first = np.append(True, keys[1:] != keys[:-1])
            firsts = block.take(pa.array(np.flatnonzero(is_first) + begin))
            there = {name.lower(): name for name in block.schema.names}
            columns = []
            for field in held:
                name = there.get(field.name.lower())
                try:
                    column = pa.nulls(len(firsts)) if name is None else firsts.column(name)
                    columns.append(conformed(column, field.type))
                except pa.ArrowException as error:
                    raise PairmillError(
                        f"{paths[path.parent.name]}: the column {name!r} does not fit the other lists': {error}",
                        "give it one type in all lists",
                    ) from None
            rows = block.column("row").slice(begin, end - begin).to_numpy().copy()
            names = [field.name for field in held]
            yield _Slice(paths[path.parent.name], inside, rows, is_first, pa.table(columns, names=names))


def _position(uids: memoryview, rows: int, bound: int) -> int:
    """Where in the sorted uids those from `bound` on begin."""
    if bound >= 1 << 128:
        return rows
    wanted = bound.to_bytes(UID_BYTES, "big")
    return bisect_left(range(rows), wanted, key=lambda row: bytes(uids[row * UID_BYTES : (row + 1) * UID_BYTES]))


def _hex(uids: np.ndarray) -> pa.StringArray:
    """32 lower-case hex digits for each uid of 16 bytes."""
    ends = np.arange(len(uids) + 1, dtype=np.int32) * (2 * UID_BYTES)
    return pa.StringArray.from_buffers(len(uids), pa.py_buffer(ends), pa.py_buffer(uids.tobytes().hex().encode()))
