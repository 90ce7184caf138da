"""JSON Lines: an object a line, whose keys are the columns."""

import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from pipeline.lists import rows
from pipeline.lists.rows import (
    BAD_JSON,
    CONTENT_CHARACTERS,
    NOT_UTF8,
    ROW_TOO_LONG,
    TOO_MANY,
    BadRow,
    Block,
    physical_lines,
    shortened,
)


def read(file: IO[bytes], wanted: Sequence[str]) -> Iterator[Block]:
    """The file's objects. `wanted` are columns even where an object, or all of a later block, lack them."""
    keys = _Keys(wanted)
    good: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    size, row, is_first = 0, 0, True

    def block() -> Block:
        names = list(keys.spelling.values())
        if is_first and good:  # a wanted key that no object has is a mistake in the recipe; later ones may lack it
            names = [name for name in names if name not in wanted or any(name in record for record in good)]
        return Block(
            {name: _typed([record.get(name) for record in good]) for name in names}, np.array(numbers, np.int64), bad
        )

    for line in physical_lines(file):
        content = line.strip()
        if not content:
            continue
        row += 1
        size += len(line)
        record = _object(content, keys)
        if isinstance(record, dict):
            good.append(record)
            numbers.append(row)
        else:
            bad.append(BadRow(row, record, shortened(content[: 4 * CONTENT_CHARACTERS].decode(errors="replace"))))
        if len(good) + len(bad) >= rows.BLOCK_ROWS or size >= rows.BLOCK_BYTES:
            yield block()
            good, numbers, bad, size, is_first = [], [], [], 0, False
    yield block()


class _Keys:
    """The keys that a list's objects have had: its columns. Names of columns are blind to case in SQL, so the first
    spelling of each stands for all."""

    def __init__(self, names: Sequence[str]) -> None:
        self.spelling = {name.lower(): name for name in names}
        self._known = set(names)

    def spelled(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """The object with its keys as columns; None if there would be too many columns."""
        if record.keys() <= self._known:
            return record
        if len(self.spelling.keys() | {key.lower() for key in record}) > rows.MAX_COLUMNS:
            return None
        self._known |= {self.spelling.setdefault(key.lower(), key) for key in record}
        return {self.spelling[key.lower()]: value for key, value in record.items()}


_DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # NaN and Infinity: what is no number is unknown


def _object(line: bytes, keys: _Keys) -> dict[str, Any] | str:
    """The object on a line, or the reason why there is none."""
    if len(line) > rows.MAX_ROW_BYTES:
        return ROW_TOO_LONG
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return NOT_UTF8
    try:
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair, from a text that was cut off in its midst
            whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            value = json.loads(whole)
        if not isinstance(value, dict):
            return BAD_JSON
        for key, item in value.items():
            if isinstance(item, dict | list) and not _is_plain(item):
                value[key] = json.dumps(item, ensure_ascii=False)
    except (ValueError, RecursionError):
        return BAD_JSON
    record = keys.spelled(value)
    return TOO_MANY if record is None else record


def _is_plain(value: Any, depth: int = 2) -> bool:
    """Whether this is a scalar, a list of such or a list of lists. The rest stays JSON: its keys may be anything, and
    each would be a column of a kind."""
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return not isinstance(value, dict)


def _typed(values: list[Any]) -> pa.Array:
    """An array of the values' own type; of texts, where their types differ."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        return pa.array(texts, pa.string())
