"""From the rows of a list to pairs: columns by our names, clean texts, a uid each; what is no pair gets its reason."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PairmillError
from pipeline.lists.rows import BadRow, Block, shortened
from pipeline.recipe import Ingest
from pipeline.texts.cleaning import clean_column

MAX_TEXT_CHARACTERS = 10_000
MAX_URL_CHARACTERS = 8192
UID_BYTES = 16
OWN_COLUMNS = ("uid", "url", "text", "original", "file", "row")

NO_URL, NO_TEXT = "no url", "no text"
URL_CONTROL = "blank or control character in the url"
URL_LONG = f"url over {MAX_URL_CHARACTERS} characters"
TEXT_NUL = "NUL byte in the text"
TEXT_LONG = f"text over {MAX_TEXT_CHARACTERS} characters"
NOT_A_NUMBER = "not a number"
MAX_TEXTS = 100
MANY_TEXTS = f"over {MAX_TEXTS} texts"
REASONS = (MANY_TEXTS, NO_URL, NO_TEXT, URL_CONTROL, URL_LONG, TEXT_NUL, TEXT_LONG, NOT_A_NUMBER)
"""Why a row that can be read is no pair, in the order in which it is judged: the first that holds is its reason."""

# How lists write a number that is not known.
UNKNOWN_NUMBERS = ("", "nan", "na", "n/a", "none", "null", "-")
_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True)
class Pairs:
    """What a block's rows became. `table` has uid (16 bytes), url, text, original, the list's other columns and row,
    in order of uid, then row; `bad` in order of row."""

    table: pa.Table
    bad: list[BadRow]


def pairs_of(block: Block, section: Ingest, path: str) -> Pairs:
    """Normalise a block of the file `path`. Raises PairmillError where its columns are not those of the recipe."""
    columns = _ours(block, section, path)
    columns["url"] = _as_text(columns["url"], path, "url")
    crowded, rows, columns = _one_text_each(block.rows, columns)
    columns["text"] = _as_text(columns["text"], path, "text")
    url = pc.fill_null(pc.utf8_trim(columns.pop("url"), characters="\t\n\r "), "")
    came = columns.pop("text")
    text = pc.fill_null(came, "")
    reasons = np.full(len(rows), "", object)

    def refuse(where: pa.BooleanArray, reason: str) -> None:
        reasons[_mask(where) & (reasons == "")] = reason

    refuse(pc.equal(url, ""), NO_URL)
    refuse(pc.equal(text, ""), NO_TEXT)
    refuse(pc.match_substring_regex(url, r"[\x00-\x20\x7f]"), URL_CONTROL)
    refuse(pc.greater(pc.utf8_length(url), MAX_URL_CHARACTERS), URL_LONG)
    refuse(pc.match_substring_regex(text, r"\x00"), TEXT_NUL)
    refuse(pc.greater(pc.utf8_length(text), MAX_TEXT_CHARACTERS), TEXT_LONG)  # before any work is spent on it
    text = clean_column(pc.if_else(pa.array(reasons == ""), text, ""))
    refuse(pc.equal(text, ""), NO_TEXT)
    refuse(pc.greater(pc.utf8_length(text), MAX_TEXT_CHARACTERS), TEXT_LONG)
    for name in section.numbers:
        if name in columns:
            columns[name], odd = _numbers(columns[name], path, name)
            refuse(odd, NOT_A_NUMBER)

    good = pa.array(reasons == "")
    original = pc.if_else(pc.equal(came, text), pa.scalar(None, pa.string()), came)
    table = pa.table({"url": url, "text": text, "original": original, **columns, "row": rows}).filter(good)
    refused = [
        BadRow(int(rows[index]), reasons[index], shortened(_content(url[index], came[index])))
        for index in np.flatnonzero(reasons != "")
    ]
    return Pairs(_by_uid(table), sorted([*block.bad, *crowded, *refused], key=lambda bad: bad.row))


def _mask(values: pa.BooleanArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False))


def _content(url: pa.StringScalar, text: pa.StringScalar) -> str:
    return " | ".join(value for value in (url.as_py(), text.as_py()) if value)


def _ours(block: Block, section: Ingest, path: str) -> dict[str, pa.Array]:
    """The block's columns by their names in `pairs`: a column of the list with one of ours is kept as `list_NAME`."""
    chosen = {section.url_column: "url", section.text_column: "text"}
    for wanted in chosen:
        if wanted not in block.columns:
            there = ", ".join(block.columns)
            raise PairmillError(
                f"{path} has no column {wanted!r}; it has {shortened(there)}",
                "set url_column and text_column in [ingest], or columns where there is no header line",
            )
    chosen |= {name: ours for name, ours in ((section.tags_column, "tags"), (section.lang_column, "lang")) if name}
    taken = {*OWN_COLUMNS, *chosen.values()}
    columns: dict[str, pa.Array] = {}
    for name, column in block.columns.items():
        name = name or "unnamed"
        ours = chosen.get(name) or (f"list_{name}" if name.lower() in taken else name)
        if ours.lower() in map(str.lower, columns):
            raise PairmillError(f"{path}: the column {name!r} repeats", "rename it")
        columns[ours] = column
    return columns


def _one_text_each(
    rows: np.ndarray, columns: dict[str, pa.Array]
) -> tuple[list[BadRow], np.ndarray, dict[str, pa.Array]]:
    """A row with a list of texts becomes as many rows of its number; one with an empty list keeps a null text."""
    texts = columns["text"]
    kind = texts.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return [], rows, columns
    texts = texts.cast(pa.list_(kind.value_type))
    lengths = pc.fill_null(pc.list_value_length(texts), 0)
    texts = pc.if_else(pc.equal(lengths, 0), pa.scalar([None], texts.type), texts)
    # Every text takes a copy of the row's other columns with it.
    crowded = np.asarray(pc.greater(lengths, MAX_TEXTS))
    bad = [
        BadRow(int(rows[index]), MANY_TEXTS, shortened(columns["url"][index].as_py() or ""))
        for index in np.flatnonzero(crowded)
    ]
    fit = np.flatnonzero(~crowded)
    texts = texts.take(pa.array(fit))
    parents = fit[np.asarray(pc.list_parent_indices(texts))]
    others = {name: column.take(pa.array(parents)) for name, column in columns.items() if name != "text"}
    return bad, rows[parents], {**others, "text": pc.list_flatten(texts)}


def _as_text(column: pa.Array, path: str, what: str) -> pa.StringArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        raise PairmillError(
            f"{path}: the column of {what}s holds {column.type} and no text", f"set {what}_column in [ingest]"
        ) from None


def _numbers(column: pa.Array, path: str, name: str) -> tuple[pa.DoubleArray, pa.BooleanArray]:
    """(the column as numbers, where it holds something that is none)."""
    if not (pa.types.is_string(column.type) or pa.types.is_null(column.type)):
        try:
            values = column.cast(pa.float64(), safe=False)
            known = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
            return known, pa.array(np.zeros(len(column), bool))
        except pa.ArrowException:
            raise PairmillError(
                f"{path}: the column {name!r} holds {column.type} and no numbers", "correct numbers in [ingest]"
            ) from None
    told = pc.utf8_trim_whitespace(column.cast(pa.string()))
    unknown = pc.fill_null(pc.is_in(pc.utf8_lower(told), pa.array(UNKNOWN_NUMBERS)), True)
    number = pc.and_(pc.invert(unknown), pc.fill_null(pc.match_substring_regex(told, _NUMBER), False))
    values = pc.if_else(number, pc.replace_substring_regex(told, r"^\+", ""), pa.scalar(None, pa.string()))
    return values.cast(pa.float64()), pc.invert(pc.or_(number, pc.or_(unknown, pc.is_null(told))))


def _by_uid(table: pa.Table) -> pa.Table:
    """With uid = the first 16 bytes of sha256(url, line feed, text) as the first column, and in its order."""
    sha256 = hashlib.sha256
    joined = pc.binary_join_element_wise(table["url"], table["text"], "\n").cast(pa.binary()).to_pylist()
    uids = b"".join([sha256(pair).digest()[:UID_BYTES] for pair in joined])
    order = uid_order(uids)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(UID_BYTES), len(joined), [None, pa.py_buffer(uids)])
    return table.add_column(0, "uid", column).take(pa.array(order))


def uid_order(uids: bytes) -> np.ndarray:
    """The places of uids (16 bytes each) in order of uid, equals in the order in which they stand."""
    halves = np.frombuffer(uids, ">u8").reshape(-1, 2).astype(np.uint64)
    return np.lexsort((halves[:, 1], halves[:, 0]))
