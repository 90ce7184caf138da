"""One read-only connection to a catalog, whose work Ctrl-C ends at once."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from pipeline.errors import PairmillError
from pipeline.store.sql import open_duckdb

Answer = TypeVar("Answer")

_QUOTED = re.compile(
    r"""(?<!\$)[^\W\d][\w$]*|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\w*)\$.*?\$\1\$|--[^\n]*(?:\n|\Z)|/\*.*?\*/""", re.DOTALL
)
"""Names, which may hold a $, what is quoted, and comments."""
_WRITING = {"create", "insert", "copy", "update", "delete", "merge"}
"""The first words of statements that may hold a PIVOT and give no rows."""
_OPEN = re.compile(r"""['"]|\$\w*\$|/\*""")


_PATIENCE = 1.0
"""Seconds after which a query that was interrupted and goes on is said to."""


@dataclass(frozen=True)
class Statement:
    """One statement of a script; `explains` is EXPLAIN, whose rows are drawings."""

    text: str
    gives_rows: bool
    explains: bool


class Session:
    """Runs statements on `catalog`. A context manager; `work` and `meanwhile` are the only ways in."""

    def __init__(self, catalog: Path) -> None:
        with in_duckdbs_words():
            self.connection = open_duckdb(catalog, read_only=True)
            # A misspelt view must be an error, not the variable of this program that happens to have the name.
            self.connection.execute("SET python_enable_replacements = false")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    def statements(self, sql: str) -> list[Statement]:
        """The statements of a script, whose syntax has been checked."""
        if "\0" in sql or sql.encode("utf-8", "replace").decode() != sql:
            raise PairmillError("the query holds a NUL, or bytes that are no UTF-8", "correct the text")
        with in_duckdbs_words():
            return [_read(found) for found in self.connection.extract_statements(sql)]

    def relation(self, statement: Statement) -> duckdb.DuckDBPyRelation:
        """What a statement gives, not yet computed where it is a SELECT; anything else has run. Within `work` alone."""
        try:
            return self.connection.sql(statement.text)
        except (duckdb.BinderException, duckdb.CatalogException):
            self.connection.execute(statement.text)  # says the same, and marks the place, which `sql` does not
            raise

    def work(self, function: Callable[[], Answer]) -> Answer:
        """The function's answer. Ctrl-C interrupts the query that it is at."""
        with self.meanwhile(function) as future:
            return future.result()

    @contextmanager
    def meanwhile(self, function: Callable[[], Answer]) -> Iterator[Future[Answer]]:
        """Run the function on a thread of its own. An error in the body, Ctrl-C for one, interrupts its query."""
        with in_duckdbs_words(), ThreadPoolExecutor(1) as pool:
            future = pool.submit(function)
            try:
                yield future
                future.result()
            except BaseException:
                self._interrupt(future)
                raise

    def _interrupt(self, future: Future[Any]) -> None:
        """Have the query end. DuckDB cannot end a function's one call: who does not wait for it ends the program."""
        started, said = time.monotonic(), False
        while not future.done():
            try:
                self.connection.interrupt()  # one that comes before the query has begun is lost
                wait([future], timeout=0.05)
                if not said and time.monotonic() - started > _PATIENCE:
                    print(
                        "the query is within a function that has no end yet: Ctrl-C ends this program", file=sys.stderr
                    )
                    said = True
            except KeyboardInterrupt:
                if said:
                    print("ended, and the query with it", file=sys.stderr, flush=True)
                    os._exit(130)  # anything gentler waits for the query's thread

    def rows(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        return self.work(lambda: self.connection.execute(sql, parameters).fetchall())


@contextmanager
def in_duckdbs_words() -> Iterator[None]:
    """DuckDB's errors, which name the place in the query, as PairmillErrors."""
    try:
        yield
    except duckdb.Error as error:
        raise PairmillError(str(error)) from None


def _read(found: duckdb.Statement) -> Statement:
    gives_rows = found.expected_result_type == [duckdb.ExpectedResultType.QUERY_RESULT]
    explains = found.type == duckdb.StatementType.EXPLAIN
    if found.type == duckdb.StatementType.MULTI:  # a PIVOT finds its columns first: what is asked, its first word says
        first = _bare(found.query, names=False).split(maxsplit=1)[0].lower()
        gives_rows, explains = first not in _WRITING, first == "explain"
    return Statement(_trimmed(found.query), gives_rows, explains)


def is_complete(text: str) -> bool:
    """Whether the text ends with a `;` that is neither quoted nor commented out."""
    bare = _bare(text)
    return _OPEN.search(bare) is None and bare.rstrip().endswith(";")


def _trimmed(statement: str) -> str:
    """The statement without what follows it: DuckDB's relations stumble over a `;` in a comment there."""
    return statement[: len(_bare(statement).rstrip("; \t\r\n"))]


def _bare(text: str, names: bool = True) -> str:
    """The text with blanks for its comments, and a dot for each letter of names (if so asked) and in quotes."""

    def blank(found: re.Match[str]) -> str:
        if found[0].startswith(("--", "/*")):
            return " " * len(found[0])
        return "." * len(found[0]) if names or found[0][0] in "'\"$" else found[0]

    return _QUOTED.sub(blank, text)
