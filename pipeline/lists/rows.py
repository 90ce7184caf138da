"""What every format is read into: blocks of columns, and beside them the rows that cannot be read."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import pyarrow as pa

from pipeline.errors import PairmillError

BLOCK_ROWS = 131_072
BLOCK_BYTES = 64_000_000
MAX_ROW_BYTES = 16_000_000
MAX_COLUMNS = 1000
READ_BYTES = 1 << 20
CONTENT_CHARACTERS = 500

NOT_UTF8 = "not UTF-8"
ROW_TOO_LONG = f"row over {MAX_ROW_BYTES} bytes"
TOO_FEW, TOO_MANY = "too few columns", "too many columns"
UNCLOSED_QUOTE, STRAY_QUOTE = "unclosed quote", "text behind a closing quote"
BAD_JSON = "bad JSON"
REASONS = (NOT_UTF8, ROW_TOO_LONG, TOO_FEW, TOO_MANY, UNCLOSED_QUOTE, STRAY_QUOTE, BAD_JSON)
"""Why a row cannot be read."""


@dataclass(frozen=True)
class BadRow:
    """A row for the quarantine: its number in the file (data rows, from 1), why, and its beginning."""

    row: int
    reason: str
    content: str


@dataclass
class Block:
    """Consecutive rows of a list. `columns` by the list's own names, `rows` (int64) their numbers in the file."""

    columns: dict[str, pa.Array]
    rows: np.ndarray
    bad: list[BadRow] = field(default_factory=list)


def shortened(content: str) -> str:
    return content[:CONTENT_CHARACTERS]


def check_distinct(path: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise PairmillError(f"{path}: a column repeats", "rename it")


def physical_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Physical lines, ended by LF, CRLF or CR; one longer than `MAX_ROW_BYTES` is cut off behind that many bytes."""
    held, dropping = file.read(3).removeprefix(codecs.BOM_UTF8), False
    while chunk := file.read(READ_BYTES):
        lines = (held + chunk).splitlines(keepends=True)
        # The last line may go on, and a CR at its end may be half of a CRLF.
        held = b"" if lines[-1].endswith(b"\n") else lines.pop()
        for line in lines:
            if not dropping:
                yield line[: MAX_ROW_BYTES + 1]
            dropping = False
        if len(held) > MAX_ROW_BYTES:
            if not dropping:
                yield held[: MAX_ROW_BYTES + 1]
            held, dropping = (b"\r" if held.endswith(b"\r") else b"."), True
    if not dropping:
        yield from held.splitlines(keepends=True)
