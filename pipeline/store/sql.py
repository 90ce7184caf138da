"""Safe pieces of SQL: values, names and files from outside are quoted here and nowhere else."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import PairmillError

READING = "SET disable_parquet_prefetching = true"
"""Without it DuckDB reads, on some disks, a million bytes around each chunk of a list: features, for boxes' sake."""
_PLACE = re.compile(r'"query_location(_length)?":\d+')


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


def double(value: float) -> str:
    """A DOUBLE, to the last bit: infinities and NaN have no literal, and DuckDB reads bare digits as decimals."""
    return f"{literal(repr(float(value)))}::DOUBLE"


def identifier(column: str) -> str:
    """A quoted column name."""
    return '"' + column.replace('"', '""') + '"'


def condition(where: str) -> str:
    """A condition from outside, in brackets. Raises PairmillError where it is not one alone, and duckdb.Error.

    It is one expression if it means the same with and without brackets: what closes ours and opens others (`a) OR (b`)
    is no SQL without them, and what is more than an expression (`a AS b`, `a ORDER BY b`, `a;`) is none within.
    """
    whole = f"({where}\n)"
    duckdb.extract_statements(f"SELECT 1 WHERE {whole}")  # its errors name the place
    with duckdb.connect() as connection:
        trees = [_tree(connection, f"SELECT {text}") for text in (whole, f"{where}\n")]
    if trees[0] is None or trees[0] != trees[1]:
        raise PairmillError(f"WHERE {where!r} is not one condition", "such as split = 'train'")
    return whole


def _tree(connection: duckdb.DuckDBPyConnection, query: str) -> str | None:
    """What DuckDB's parser makes of one SELECT, without the places in its text; None where it is none."""
    ((found,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    # Within a JSON string these quotes would be escaped: nothing of the query's own text is left out.
    return None if found.startswith('{"error":true') else _PLACE.sub("", found)


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
