"""Safe pieces of SQL: values, names and files from outside are quoted here and nowhere else."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import PairmillError

READING = "SET disable_parquet_prefetching = true"
"""Without it DuckDB reads, on some disks, a million bytes around each chunk of a list: features, for boxes' sake."""


def open_duckdb(database: Path | str = ":memory:", *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """A connection with the settings that every one of ours needs.

    No asynchronous writing: in DuckDB 2.0 a COPY whose query fails or is interrupted may wait for ever for its own
    writers (about one in fifty on two cores), and not even an interrupt ends it.
    """
    connection = duckdb.connect(str(database), read_only=read_only)
    connection.execute(f"{READING}; SET async_threads = 0")
    return connection


def literal(value: object) -> str:
    """A string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def identifier(column: str) -> str:
    """A quoted column name."""
    return '"' + column.replace('"', '""') + '"'


def condition(where: str) -> str:
    """A condition from outside, in brackets. Raises PairmillError where it is not one alone, and duckdb.Error."""
    whole = f"({where}\n)"
    statements = duckdb.extract_statements(f"SELECT 1 WHERE {whole}")
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT or not where.strip():
        raise PairmillError(f"WHERE {where!r} is not one condition", "such as split = 'train'")
    return whole


def parquet(paths: Iterable[Path | str], options: str = "") -> str:
    """A FROM item over Parquet files."""
    return f"read_parquet([{', '.join(map(literal, paths))}]{options})"


def write_parquet(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write a query's rows, in their order, to one Parquet file."""
    # Hexadecimal digests, most of these files, come out smaller from zstd's level 1 than from its default, and sooner.
    form = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 122880"
    connection.execute(f"COPY ({query}) TO {literal(path)} ({form})")


def named_rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    """A query's rows, each by the names of its columns."""
    connection.execute(query)
    names = [name for name, *_ in connection.description or ()]
    return [dict(zip(names, row, strict=True)) for row in connection.fetchall()]


def number(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """The single whole number that a query gives."""
    # `fetchone` leaves the result open, and the connection busy: what is asked next may be refused.
    rows: Any = connection.execute(query).fetchall()
    return int(rows[0][0])
