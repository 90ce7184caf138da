"""A query's rows as a table for people, or as CSV, JSON, JSON lines or Parquet for programs.

All but the table are written by DuckDB's own COPY, block by block: ten million rows need no more memory than ten.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from enum import StrEnum
from io import StringIO
from pathlib import Path

import duckdb

from pipeline.errors import PairmillError
from pipeline.sql_shell.session import Session, Statement
from pipeline.store.atomic import replacing
from pipeline.store.sql import identifier, literal

MAX_ROWS = 200
"""Of a table that are shown."""
WIDTH = 200
"""Characters of a table that goes to no terminal."""
_BLOCK = 1 << 16
_UNSEEN = dict.fromkeys([0x7F, *range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
"""What a terminal would obey and DuckDB's tables let through: C1 controls, line ends, directions of writing."""
_OBEYED = _UNSEEN | dict.fromkeys(number for number in range(32) if number not in b"\t\r\n")
_WITHOUT_NAN = {
    *("VARCHAR", "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT", "DATE", "TIME", "TIMESTAMP"),
}
_STANDARD = (
    r"""replace(replace(regexp_replace(to_json(#{})::VARCHAR, '("(?:[^"\\]|\\.)*")|-?(?:nan|inf(?:inity)?)', """
    r"""'\1' || chr(0), 'gi'), '"' || chr(0), '"'), chr(0), 'null')::JSON"""
)
"""Any value as standard JSON, which has no NaN and no infinity: null for them, wherever they are. Each string and each
of them is marked by a NUL behind it, which JSON never holds, and a mark that follows no string stands for one."""
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class Format(StrEnum):
    """What rows are written as; the value is what the user calls it."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"

    @classmethod
    def asked(cls, name: str | None, out: Path | None) -> "Format":
        """The format of that name, or else the one that the file's suffix names, or else a table."""
        name = name or (_plain(out).suffix[1:].lower() if out else "") or "table"
        if out and name == cls.PARQUET and out.suffix in _COMPRESSIONS:
            raise PairmillError(f"{out}: Parquet is compressed inside", "name it .parquet")
        if name not in list(cls):
            raise PairmillError(f"FORMAT={name}: there is no such format", f"one of {', '.join(cls)}")
        return cls(name)

    @property
    def options(self) -> str:
        """COPY's, for all but the table."""
        return {
            Format.CSV: "FORMAT csv, HEADER",
            Format.JSON: "FORMAT json, ARRAY true",
            Format.JSONL: "FORMAT json",
            Format.PARQUET: "FORMAT parquet, COMPRESSION zstd",
        }[self]


def answer(session: Session, sql: str, form: Format, out: Path | None = None) -> None:
    """Run a script and write what it gives: a table of each of its results; in other formats, the only one.

    `out` is written whole or not at all.
    """
    out = out and _file(out)
    statements = session.statements(sql)
    asking = [statement for statement in statements if statement.gives_rows]
    if not statements:
        raise PairmillError("nothing was asked", 'make sql Q="FROM funnel"')
    if form is not Format.TABLE and len(asking) != 1:
        raise PairmillError(
            f"FORMAT={form} holds one result, and this gives {len(asking)}", "ask one question, or leave FORMAT out"
        )
    if form is Format.PARQUET and out is None and sys.stdout.isatty():
        raise PairmillError("Parquet is not for a terminal", "name a file: OUT=rows.parquet")
    if form is Format.TABLE:
        tables = (text for statement in statements if (text := table(session, statement)) is not None)
        if out is None:
            for text in tables:
                say(text)
        else:
            with replacing(out) as path:
                path.write_text("".join(f"{text}\n" for text in tables), encoding="utf-8")
        return
    for statement in statements:
        if not statement.gives_rows:
            session.work(lambda statement=statement: session.relation(statement))  # type: ignore[misc]
        elif out is None:
            stream(session, statement, form)
        else:
            _write(session, statement, form, out)


def table(session: Session, statement: Statement) -> str | None:
    """The statement's rows, drawn; None where it gives none."""

    def run() -> str | None:
        relation = session.relation(statement)
        if not statement.gives_rows:
            return None
        if statement.explains:
            return "\n".join(plan for _, plan in relation.fetchall())
        # Shown are the first rows, which ORDER BY put there; DuckDB itself shows some of the first and of the last
        # of ten thousand, and says of more only that they are more.
        some = relation.limit(MAX_ROWS + 1).materialize()
        drawn = _drawn(some.limit(MAX_ROWS))
        if _count(some) <= MAX_ROWS:
            return drawn
        body, corner, foot = drawn.rpartition("\n└")
        box = body + corner + foot.partition("\n")[0]  # without its own count
        return f"{box}\n  the first {MAX_ROWS} of {_count(relation):,} rows"

    text = session.work(run)
    return text and text.rstrip().translate(_UNSEEN)


def stream(session: Session, statement: Statement, form: Format, limit: int | None = None) -> None:
    """Write the statement's rows to standard output as DuckDB finds them."""
    reading, writing = os.pipe()

    def copy() -> None:
        try:
            # A pipe's end, and not /dev/stdout: that would be opened anew, and `>>` would overwrite the file.
            relation = session.relation(statement)
            _copy(relation if limit is None else relation.limit(limit), f"/dev/fd/{writing}", form.options)
        finally:
            os.close(writing)

    sys.stdout.flush()
    with session.meanwhile(copy), open(reading, "rb", buffering=0) as source:
        if sys.stdout.isatty():
            with open(source.fileno(), closefd=False, encoding="utf-8", errors="replace", newline="") as text:
                while block := text.read(_BLOCK):
                    sys.stdout.write(block.translate(_OBEYED))
        else:
            shutil.copyfileobj(source, sys.stdout.buffer, _BLOCK)
        sys.stdout.flush()


def say(text: str) -> None:
    """Print to standard output, whatever letters it is able to show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


@contextmanager
def quiet_when_nobody_reads() -> Iterator[None]:
    """A reader that has had enough, as `head` has, is no error."""
    try:
        yield
    except BrokenPipeError:
        # What the buffer still holds is flushed at the end, and would fail again.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _file(out: Path) -> Path:
    """Where a file is to be: what a link points to. Raises PairmillError where something else stands."""
    place = out.resolve()
    if place.exists() and not place.is_file():
        raise PairmillError(f"{out} is no file", "leave OUT out and send the output there: > or |")
    return place


def _write(session: Session, statement: Statement, form: Format, out: Path) -> None:
    compression = _COMPRESSIONS.get(out.suffix)
    options = form.options + (f", COMPRESSION {compression}" if compression and form is not Format.PARQUET else "")
    with replacing(out) as path:
        session.work(lambda: _copy(session.relation(statement), str(path), options))


def _copy(relation: duckdb.DuckDBPyRelation, place: str, options: str) -> None:
    columns = "*"
    if "json" in options:
        columns = ", ".join(
            (f"#{place}" if str(kind) in _WITHOUT_NAN else _STANDARD.format(place)) + f" AS {identifier(name)}"
            for place, (name, kind) in enumerate(zip(relation.columns, relation.types, strict=True), 1)
        )
    relation.query("asked", f"COPY (SELECT {columns} FROM asked) TO {literal(place)} ({options}, USE_TMP_FILE false)")


def _drawn(relation: duckdb.DuckDBPyRelation) -> str:
    width = shutil.get_terminal_size((WIDTH, 0)).columns if sys.stdout.isatty() else WIDTH
    with redirect_stdout(StringIO()) as box:  # DuckDB draws a box for nobody but Python's print
        relation.show(max_rows=MAX_ROWS, max_width=width)
    return box.getvalue()


def _count(relation: duckdb.DuckDBPyRelation) -> int:
    rows: list[tuple[int]] = relation.aggregate("count(*)").fetchall()
    return rows[0][0]


def _plain(out: Path) -> Path:
    """The name without what says how it is compressed."""
    return out.with_suffix("") if out.suffix in _COMPRESSIONS else out
