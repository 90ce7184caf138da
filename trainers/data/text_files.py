"""Texts from lists of one's own: .txt with one a line, .jsonl, .csv, .tsv and .parquet, plain or compressed.

Read by the same code as the pairs' lists, and cleaned likewise. A row that cannot be used is counted with its reason.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.errors import PairmillError
from pipeline.lists.files import Part, parts_of, unreadable
from pipeline.lists.reading import blocks
from pipeline.lists.rows import BLOCK_BYTES, MAX_ROW_BYTES, NOT_UTF8, ROW_TOO_LONG, BadRow, Block, physical_lines
from pipeline.texts.cleaning import clean_column

EMPTY = "no text"
PLAIN = (".txt", ".txt.gz", ".txt.zst")
REMEDY = "correct `files` in the run's sources"


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts of files, in order of file and row."""

    uids: np.ndarray
    """(texts,) bytes: "FILE:ROW"."""
    columns: tuple[pa.LargeStringArray, ...]
    """Each column that was asked for, (texts,)."""
    held_out: np.ndarray
    """(texts,) bool: which are for validation."""
    skipped: Counter[str] = field(default_factory=Counter)
    """How many rows were left out, by reason."""

    def part(self, held_out: bool) -> "Texts":
        """Those for validation, or those for training."""
        chosen = self.held_out == held_out
        columns = tuple(column.filter(pa.array(chosen)) for column in self.columns)
        return Texts(self.uids[chosen], columns, self.held_out[chosen], self.skipped)


def read_texts(files: Sequence[str], columns: Sequence[str], held_out: float) -> Texts:
    """The rows of `files` in which all of `columns` hold a text.

    Which `held_out` share of them is for validation, the digest of the first column's text says, so that no text is on
    both sides. A .txt has one column, whatever it is called. Raises PairmillError where a file cannot be read, or lacks
    a column.
    """
    held = [np.empty(0, bool)]
    uids, kept = [np.empty(0, "S1")], [pa.table({name: pa.array([], pa.large_string()) for name in columns})]
    skipped: Counter[str] = Counter()
    bound = int(held_out * 2**64)
    for path, block in _blocks(files, columns):
        name = path.rpartition("/")[2]
        for bad in block.bad:
            skipped[bad.reason] += 1
        texts = [clean_column(_texts(block, column, path)) for column in columns]
        usable = np.ones(len(block.rows), bool)
        for text in texts:
            usable &= np.asarray(pc.fill_null(pc.greater(pc.binary_length(text), 0), False))
        skipped[EMPTY] += int((~usable).sum())
        uids.append(np.array([f"{name}:{row}".encode() for row in block.rows[usable].tolist()], np.bytes_))
        table = pa.table(dict(zip(columns, texts, strict=True))).filter(pa.array(usable))
        digests = (xxhash.xxh3_64_intdigest(text.encode()) for text in table[columns[0]].to_pylist())
        held.append(np.fromiter((digest < bound for digest in digests), bool, len(table)))
        kept.append(table.cast(kept[0].schema))
    whole = pa.concat_tables(kept)
    there = tuple(whole[column].combine_chunks() for column in columns)
    return Texts(np.concatenate(uids), there, np.concatenate(held), +skipped)


def states_of(files: Sequence[str]) -> list[dict[str, object]]:
    """What tells these files, as they are now, from others: for a run's key."""
    return [vars(part) for part in _parts(files)]


def _blocks(files: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, Block]]:
    """(path, block) of all rows."""
    for part in _parts(files):
        with _remedied(part.path):
            read = _lines(part.path, columns[0]) if _is_plain(part.path) else blocks(part, columns)
            yield from ((part.path, block) for block in read)


def _parts(files: Sequence[str]) -> list[Part]:
    """The files that match now, in order of path; of large ones some row groups each."""
    parts: list[Part] = []
    for pattern in files:
        with _remedied(pattern):
            parts += _plain_parts(pattern) if _is_plain(pattern) else parts_of((pattern,))
    return sorted(parts, key=lambda part: (part.path, part.first_row))


def _is_plain(path: str) -> bool:
    return path.lower().endswith(PLAIN)


def _plain_parts(pattern: str) -> list[Part]:
    filesystem, path = fsspec.core.url_to_fs(pattern)
    found = [path] if filesystem.exists(path) else filesystem.glob(path)
    if not found:
        raise PairmillError(f"no file matches {pattern}", REMEDY)
    infos = [filesystem.info(name) for name in found]
    names = [filesystem.unstrip_protocol(name) if "://" in pattern else name for name in found]
    return [
        Part(name, info.get("size"), str(info.get("mtime") or info.get("ETag") or ""))
        for name, info in zip(names, infos, strict=True)
    ]


def _lines(path: str, column: str) -> Iterator[Block]:
    """A text a line; empty lines count as rows, so that a row's number is the line's."""
    with fsspec.open(path, "rb", compression="infer") as file:
        good: list[str] = []
        rows: list[int] = []
        bad: list[BadRow] = []
        size = 0
        for row, line in enumerate(physical_lines(file), 1):
            size += len(line)
            try:
                if len(line) > MAX_ROW_BYTES:
                    bad.append(BadRow(row, ROW_TOO_LONG, ""))
                else:
                    good.append(line.decode())
                    rows.append(row)
            except UnicodeDecodeError:
                bad.append(BadRow(row, NOT_UTF8, ""))
            if size > BLOCK_BYTES:
                yield Block({column: pa.array(good, pa.string())}, np.array(rows, np.int64), bad)
                good, rows, bad, size = [], [], [], 0
        yield Block({column: pa.array(good, pa.string())}, np.array(rows, np.int64), bad)


def _texts(block: Block, column: str, path: str) -> pa.StringArray:
    found = block.columns.get(column)
    if found is None:
        there = ", ".join(block.columns) or "none"
        raise PairmillError(
            f"{path} has no column {column}; it has {there}", "correct text_column or translation_column"
        )
    if pa.types.is_null(found.type):
        return pa.nulls(len(found), pa.string())
    if not pa.types.is_string(found.type):
        raise PairmillError(f"{path}: the column {column} holds {found.type} and not texts", "name another column")
    return found


@contextmanager
def _remedied(path: str) -> Iterator[None]:
    """What the lists' readers say, with the remedy for a source in place of theirs."""
    try:
        yield
    except PairmillError as error:
        what, _, remedy = str(error).partition("\n  -> ")
        raise PairmillError(what, REMEDY if "[ingest]" in remedy else remedy) from None
    except unreadable(path) as error:
        raise PairmillError(f"cannot read {path}: {error}", REMEDY) from None
