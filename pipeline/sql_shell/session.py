"""One read-only connection to a catalog, whose work Ctrl-C ends at once."""

import re
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
_OPEN = re.compile(r"""['"]|\$\w*\$|/\*""")


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
            return [
                Statement(
                    _trimmed(found.query),
                    found.expected_result_type == [duckdb.ExpectedResultType.QUERY_RESULT],
                    found.type == duckdb.StatementType.EXPLAIN,
                )
                for found in self.connection.extract_statements(sql)
            ]

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
                while not future.done():  # one that comes before the query has begun is lost
                    self.connection.interrupt()
                    wait([future], timeout=0.05)
                raise

    def rows(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        return self.work(lambda: self.connection.execute(sql, parameters).fetchall())


@contextmanager
def in_duckdbs_words() -> Iterator[None]:
    """DuckDB's errors, which name the place in the query, as PairmillErrors."""
    try:
        yield
    except duckdb.Error as error:
        raise PairmillError(str(error)) from None


def is_complete(text: str) -> bool:
    """Whether the text ends with a `;` that is neither quoted nor commented out."""
    bare = _bare(text)
    return _OPEN.search(bare) is None and bare.rstrip().endswith(";")


def _trimmed(statement: str) -> str:
    """The statement without what follows it: DuckDB's relations stumble over a `;` in a comment there."""
    return statement[: len(_bare(statement).rstrip("; \t\r\n"))]


def _bare(text: str) -> str:
    """The text with blanks for its comments, and a dot for each letter of names and in quotes."""
    return _QUOTED.sub(lambda found: (" " if found[0].startswith(("--", "/*")) else ".") * len(found[0]), text)
