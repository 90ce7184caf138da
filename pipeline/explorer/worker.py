"""A process that answers queries over one catalog, one after the other, and that can be killed over any of them.

DuckDB ends a query on request, but not within a function (an edit distance of two long texts takes hours), and its
memory limit does not count texts that functions make. A process's end is sure, and so is the limit on its memory.

Called by `querying.py` alone: questions come in by stdin and answers go out by stdout, each as its length in 8 bytes
and a pickle; neither end reads what another program wrote.
"""

import json
import os
import pickle
import re
import resource
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, BinaryIO, Literal

import duckdb

from pipeline.explorer.confined import write_only_in
from pipeline.store.sql import literal, open_duckdb

CELL = 2_000
"""Characters of a value in an answer of texts; what is longer ends in an ellipsis."""
CELLS = 40_000
"""Values of an answer of texts: one of many columns has the fewer rows, for the server holds what it shows."""
_PLAN = 50_000
"""Characters of a value of an EXPLAIN."""
BEYOND = 2 << 30
"""Bytes that a process may hold beyond DuckDB's memory limit: code, stacks, and texts under way."""
_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""What a query may be made of."""
ONE = "one statement at a time, and only SELECT (or FROM, WITH, DESCRIBE, SUMMARIZE, SHOW) and EXPLAIN of one"
_EXPLAIN = re.compile(
    r"""(?:\s|--[^\n]*\n|/\*.*?\*/)*explain\b
        (?P<options>(?:\s+analyze\b)?(?:\s*\((?:\s*(?:analyze|format\s+'?\w+'?)\s*(?:,|(?=\))))+\))?)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
"""EXPLAIN with options that write nothing, whatever they are put before."""


@dataclass(frozen=True)
class Question:
    """One statement. `form`: rows of Python values, rows of texts as DuckDB writes them, or all rows as arrays."""

    sql: str
    parameters: tuple[object, ...] = ()
    rows: int = 1
    form: Literal["values", "texts", "arrays"] = "values"


@dataclass(frozen=True)
class Column:
    """A column of an answer; `type` in DuckDB's words."""

    name: str
    type: str


@dataclass(frozen=True)
class Answer:
    """Rows by their columns' names (a name that comes twice gets a number). `more`: there were more than asked for."""

    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    more: bool
    seconds: float


@dataclass(frozen=True)
class Refused:
    """Why there is no answer, in DuckDB's words or ours."""

    what: str


def opened(catalog: str, folders: Sequence[str], spill: str, memory: str, spilled: str) -> duckdb.DuckDBPyConnection:
    """The catalog, read-only; no file but those under `folders` can be read, and no setting changed."""
    connection = open_duckdb(catalog, read_only=True)
    for setting in (
        "SET parquet_metadata_cache = true",  # the same files again and again
        f"SET memory_limit = {literal(memory)}",
        f"SET temp_directory = {literal(spill)}",
        f"SET max_temp_directory_size = {literal(spilled)}",
        "SET autoinstall_known_extensions = false",
        "SET autoload_known_extensions = false",
        "SET python_enable_replacements = false",  # FROM name would read Python's variables
        f"SET allowed_directories = [{', '.join(map(literal, folders))}]",
        "SET enable_external_access = false",
        "SET lock_configuration = true",
    ):
        connection.execute(setting)
    return connection


def checked(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The statement, if it is one that only reads; raises ValueError with a sentence otherwise."""
    statements = connection.extract_statements(sql)
    if not statements:
        raise ValueError("there is no statement")
    if len(statements) > 1:
        raise ValueError(f"refused: these are {len(statements)} statements; {ONE}")
    (statement,) = statements
    try:
        kind = statement.type
    except ValueError:  # a statement so new that the Python package has no name for it
        raise ValueError(f"refused: {ONE}") from None
    if kind == duckdb.StatementType.SELECT and _only_reads(connection, statement.query):
        return statement.query
    if kind == duckdb.StatementType.EXPLAIN and (head := _EXPLAIN.match(sql)):
        # EXPLAIN ANALYZE runs what it explains, a COPY as well.
        try:
            inner = connection.extract_statements(sql[head.end() :])
        except duckdb.ParserException:  # the whole was SQL: what stands before the question is an option
            raise ValueError(f"refused: of the options of EXPLAIN there are ANALYZE and FORMAT here; {ONE}") from None
        is_select = len(inner) == 1 and inner[0].type == duckdb.StatementType.SELECT
        if is_select and _only_reads(connection, inner[0].query):
            return f"EXPLAIN {head['options']} {inner[0].query}"
    if kind == duckdb.StatementType.MULTI:
        raise ValueError(f"refused: a PIVOT names its columns here: PIVOT ... ON column IN (...); {ONE}")
    if kind == duckdb.StatementType.SELECT:
        raise ValueError(f"refused: something in it is not a question (COPY, INSERT, ...); {ONE}")
    raise ValueError(f"refused: {kind.name} is not a question; {ONE}")


def _only_reads(connection: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Whether every query within the query is one: DuckDB takes a COPY as the body of a WITH, and calls it a SELECT."""
    ((tree,),) = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
    parsed = json.loads(tree)
    return not parsed["error"] and _kinds(parsed) <= _READING


def _kinds(tree: Any) -> set[str]:
    """The kinds of all query nodes in a parsed statement."""
    if isinstance(tree, list):
        return set().union(*map(_kinds, tree))
    if not isinstance(tree, dict):
        return set()
    kind = tree.get("type")
    own = {kind} if isinstance(kind, str) and kind.endswith("_NODE") else set()
    return own.union(*map(_kinds, tree.values()))


def answered(connection: duckdb.DuckDBPyConnection, question: Question) -> "Answer | dict[str, Any] | Refused":
    """What the catalog says to a question."""
    started, most = time.perf_counter(), question.rows
    try:
        with connection.cursor() as cursor:
            sql = checked(cursor, question.sql)
            if question.form == "arrays":
                return cursor.execute(sql, question.parameters).fetchnumpy()
            if question.form == "texts":
                columns, rows, most = _texts(cursor, sql, question.rows)
            else:
                result = cursor.execute(sql, question.parameters)
                columns = _columns(
                    [name for name, *_ in result.description], [kind for _, kind, *_ in result.description]
                )
                rows = result.fetchmany(question.rows + 1)
    except (duckdb.Error, ValueError) as error:
        return Refused(str(error))
    except (MemoryError, RuntimeError) as error:
        return Refused(f"Out of memory: {error}")
    named = [dict(zip([column.name for column in columns], row, strict=True)) for row in rows[:most]]
    return Answer(columns, named, len(rows) > most, time.perf_counter() - started)


def _texts(
    cursor: duckdb.DuckDBPyConnection, sql: str, rows: int
) -> tuple[tuple[Column, ...], list[tuple[str | None, ...]], int]:
    """The columns, the rows and one more, and how many rows there may be."""
    relation = cursor.sql(sql)
    if relation is None:
        return (), [], rows
    names, types = relation.columns, relation.types
    most = min(rows, max(1, CELLS // len(names)))
    longest = _PLAN if sql.startswith("EXPLAIN ") else CELL
    # DuckDB writes and cuts the values itself: no long one comes as far as Python.
    cut = ", ".join(f"left(#{place}::VARCHAR, {longest + 1}) AS c{place}" for place in range(1, len(names) + 1))
    found = relation.limit(most + 1).project(cut).fetchall()
    return _columns(names, types), [tuple(_shortened(value, longest) for value in row) for row in found], most


def _shortened(value: str | None, longest: int) -> str | None:
    return value if value is None or len(value) <= longest else value[:longest] + "…"


def _columns(names: Sequence[str], types: Sequence[object]) -> tuple[Column, ...]:
    times: dict[str, int] = {}
    columns: dict[str, Column] = {}
    for name, kind in zip(names, types, strict=True):
        unique = name
        while unique in columns:  # "a (2)" may be a column's own name
            times[name] = times.get(name, 1) + 1
            unique = f"{name} ({times[name]})"
        columns[unique] = Column(unique, str(kind))
    return tuple(columns.values())


def send(stream: BinaryIO, message: object) -> None:
    content = pickle.dumps(message, protocol=5)
    stream.write(len(content).to_bytes(8, "big") + content)
    stream.flush()


def main(catalog: str, spill: str, memory: str, spilled: str, *folders: str) -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may come between the answers
    write_only_in(spill)
    try:
        connection = opened(catalog, folders, spill, memory, spilled)
    except duckdb.Error as error:
        send(out, Refused(f"{catalog} cannot be opened ({str(error).splitlines()[0]}): run `make catalog`"))
        return
    row: Any = connection.execute("SELECT current_setting('max_memory')").fetchone()
    limit = _bytes(row[0]) + BEYOND
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    questions: SimpleQueue[Question] = SimpleQueue()

    def answer() -> None:
        while True:
            question = questions.get()
            reply = answered(connection, question)
            try:
                send(out, reply)
            except MemoryError:
                send(out, Refused("Out of memory: the answer is too large"))

    threading.Thread(target=answer, daemon=True).start()
    while len(head := sys.stdin.buffer.read(8)) == 8:
        questions.put(pickle.loads(sys.stdin.buffer.read(int.from_bytes(head, "big"))))
    os._exit(0)  # whoever asked is gone, whatever is still being computed


def _bytes(size: str) -> int:
    """DuckDB writes "1.8 GiB"."""
    number, unit = size.split()
    return int(float(number) * 1024 ** ("bytes", "KiB", "MiB", "GiB", "TiB").index(unit))
