"""Parquet, a batch at a time."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lists import rows
from pipeline.lists.files import Part
from pipeline.lists.rows import CONTENT_CHARACTERS, NOT_UTF8, BadRow, Block, check_distinct, shortened


def read(part: Part, file: IO[bytes], wanted: Sequence[str]) -> Iterator[Block]:
    """The file's rows from `part.first_row` on. `wanted` are the columns that are texts, however they are marked."""
    parquet = pq.ParquetFile(file, pre_buffer=False)  # which would hold all row groups at once
    metadata = parquet.metadata
    groups = range(metadata.num_row_groups)[part.first_group :]
    groups = groups if part.groups is None else groups[: part.groups]
    batch_rows = _rows_at_once([metadata.row_group(group) for group in groups])
    schema = parquet.schema_arrow
    check_distinct(part.path, schema.names)
    row = part.first_row
    batches = parquet.iter_batches(batch_rows, row_groups=list(groups)) if groups else ()
    for batch in chain([schema.empty_table().combine_chunks()], batches):  # a list without rows has columns as well
        numbers = np.arange(row + 1, row + 1 + batch.num_rows, dtype=np.int64)
        row += batch.num_rows
        columns = {name: _decoded(batch.column(name), name in wanted) for name in schema.names}
        yield _without_broken_texts(columns, numbers)


def _rows_at_once(groups: list[Any]) -> int:
    size = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return int(min(rows.BLOCK_ROWS, max(256, rows.BLOCK_BYTES / max(size, 1))))


def _decoded(column: pa.Array | pa.ChunkedArray, is_text: bool) -> pa.Array:
    """Without what only Arrow knows: extension types, dictionaries, views, 64-bit offsets.

    Old writers do not mark texts as such: those columns are bytes.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if is_text and pa.types.is_binary(column.type):
        column = column.view(pa.string())
    return column


def _without_broken_texts(columns: dict[str, pa.Array], numbers: np.ndarray) -> Block:
    """Parquet's readers believe that strings are UTF-8; the rows where one is not are taken out here."""
    broken = np.zeros(len(numbers), bool)
    for column in columns.values():
        if not _is_valid(column):
            broken |= [not _is_valid(column.take(pa.array([index]))) for index in range(len(column))]
    if not broken.any():
        return Block(columns, numbers)
    texts = [column.view(pa.binary()) for column in columns.values() if pa.types.is_string(column.type)]
    bad = []
    for index in np.flatnonzero(broken):
        values = [text[index].as_py() or b"" for text in texts]
        content = b" | ".join(value[:CONTENT_CHARACTERS] for value in values).decode(errors="replace")
        bad.append(BadRow(int(numbers[index]), NOT_UTF8, shortened(content)))
    whole = pa.array(~broken)
    return Block({name: column.filter(whole) for name, column in columns.items()}, numbers[~broken], bad)


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
