"""CSV and TSV, after RFC 4180, each line ended in LF, CRLF or CR.

A row that is none (a quote that never closes, or closes in the midst of a field) ends where its first line ends, and
reading goes on with the next line.
"""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow as pa

from pipeline.errors import PairmillError
from pipeline.lists import rows
from pipeline.lists.files import Part
from pipeline.lists.rows import (
    CONTENT_CHARACTERS,
    NOT_UTF8,
    ROW_TOO_LONG,
    STRAY_QUOTE,
    TOO_FEW,
    TOO_MANY,
    UNCLOSED_QUOTE,
    BadRow,
    Block,
    check_distinct,
    physical_lines,
    shortened,
)


class _Records:
    """The records of a CSV or TSV file: lists of fields, or the BadRow in their place."""

    def __init__(self, file: IO[bytes], delimiter: str) -> None:
        csv.field_size_limit(2 * rows.MAX_ROW_BYTES)  # the bound is set here, on whole rows
        self.delimiter = delimiter
        self.row = -1
        """The number of the last record; the header is 0."""
        self.bytes = 0
        """The size of all records so far."""
        self._file = physical_lines(file)
        self._again: deque[bytes] = deque()
        self._taken: list[bytes] = []
        """The lines of the record under way."""
        self._size = 0
        self._is_utf8 = True

    def _feed(self) -> Iterator[str]:
        while (line := self._again.popleft() if self._again else next(self._file, None)) is not None:
            self._taken.append(line)
            self._size += len(line)
            if self._size > rows.MAX_ROW_BYTES and len(self._taken) > 1:
                raise csv.Error(UNCLOSED_QUOTE)
            try:
                yield line.decode()
            except UnicodeDecodeError:
                self._is_utf8 = False
                yield line.decode(errors="replace")

    def __iter__(self) -> Iterator[list[str] | BadRow]:
        while True:
            try:
                for fields in csv.reader(self._feed(), delimiter=self.delimiter, strict=True):
                    if fields:  # an empty line is no row
                        self.row += 1
                        yield self._judged(fields)
                    self._next()
                return
            except csv.Error as error:
                self.row += 1
                first, *rest = self._taken
                self._again.extendleft(reversed(rest))
                self._taken, self._size = [first], len(first)
                yield self._recovered(first, str(error))
                self._next()

    def _next(self) -> None:
        self.bytes += self._size
        self._taken.clear()
        self._size, self._is_utf8 = 0, True

    def _judged(self, fields: list[str]) -> list[str] | BadRow:
        if not self._is_utf8:
            return self.bad(NOT_UTF8)
        if len(self._taken[0]) > rows.MAX_ROW_BYTES:
            return self.bad(ROW_TOO_LONG)
        return fields

    def _recovered(self, line: bytes, said: str) -> list[str] | BadRow:
        """What to make of the first line of what is no record."""
        if len(line) > rows.MAX_ROW_BYTES:
            return self.bad(ROW_TOO_LONG)
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return self.bad(NOT_UTF8)
        if self.delimiter == "\t":  # most TSV lists do not quote at all: there a quote is a quote
            return text.rstrip("\r\n").split("\t")
        return self.bad(STRAY_QUOTE if "expected after" in said else UNCLOSED_QUOTE)

    def bad(self, reason: str) -> BadRow:
        """The record under way, refused."""
        return BadRow(self.row, reason, shortened(self._taken[0][: 4 * CONTENT_CHARACTERS].decode(errors="replace")))


def read(part: Part, file: IO[bytes], delimiter: str, header: Sequence[str]) -> Iterator[Block]:
    """The file's records. `header` names the columns where the file does not."""
    records = _Records(file, delimiter)
    stream = iter(records)
    if header:
        records.row = 0
    names = header or _header(part, next(stream, None))
    width = len(names)
    good: list[tuple[str, ...]] = []  # tuples, which the garbage collector does not visit again and again
    numbers: list[int] = []
    bad: list[BadRow] = []
    begun = 0

    def block() -> Block:
        columns = zip(*good, strict=True) if good else [()] * width
        arrays = {
            # What is empty is unknown: the format has no other way to say so.
            name: pa.array([value or None for value in column], pa.string())
            for name, column in zip(names, columns, strict=True)
        }
        return Block(arrays, np.array(numbers, np.int64), bad)

    for record in stream:
        if isinstance(record, BadRow):
            bad.append(record)
        elif len(record) != width:
            bad.append(records.bad(TOO_FEW if len(record) < width else TOO_MANY))
        else:
            good.append(tuple(record))
            numbers.append(records.row)
        if len(good) + len(bad) >= rows.BLOCK_ROWS or records.bytes - begun >= rows.BLOCK_BYTES:
            yield block()
            good, numbers, bad, begun = [], [], [], records.bytes
    yield block()


def _header(part: Part, record: list[str] | BadRow | None) -> tuple[str, ...]:
    if record is None:
        raise PairmillError(f"{part.path} is empty", "leave it out of [ingest] inputs")
    if isinstance(record, BadRow):
        raise PairmillError(
            f"the header of {part.path} cannot be read: {record.reason}", "convert the file to UTF-8, or repair it"
        )
    # A column without a name is what pandas writes for its index.
    names = tuple(name or f"column{position}" for position, name in enumerate(record))
    check_distinct(part.path, names)
    return names
