"""The settings of our connections, by what goes wrong without them."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PairmillError
from pipeline.store.sql import condition

FAILING_COPIES = """
import sys
import duckdb
from pipeline.store.sql import open_duckdb
late = "SELECT CASE WHEN range = 1500000 THEN error('late') ELSE range END AS n FROM range(2000000)"
with open_duckdb() as connection:
    for _ in range(100):
        try:
            connection.execute(f"COPY ({late}) TO '{sys.argv[1]}' (FORMAT parquet)")
        except duckdb.Error as error:
            assert "late" in str(error)
        else:
            raise SystemExit("the query did not fail")
"""


def test_a_copy_that_fails_ends(tmp_path: Path) -> None:
    """With DuckDB 2.0's own settings about one in fifty waits for ever, deaf to an interrupt."""
    subprocess.run([sys.executable, "-c", FAILING_COPIES, str(tmp_path / "rows.parquet")], check=True, timeout=120)


OPERANDS = ["a", "true", "NOT a", "a IN (false)", "'('", "(a)"]
BETWEEN = [
    " OR ",
    " AND ",
    ") OR (",
    ")",
    "(",
    ") UNION ALL SELECT (",
    " UNION ALL SELECT ",
    " FROM t WHERE ",
    ",",
    ";",
]
BETWEEN += [" --", "\n", "/*", "*/", "'", '"', "$$", " AS b", " ORDER BY ", "[", "]", " OR /* ' */ ", " OR -- (\n"]
PIECES = st.tuples(st.sampled_from(OPERANDS), st.sampled_from(BETWEEN)).map("".join)


def counts(text: str) -> tuple[int, int, int, int]:
    """What the condition does to three rows among which it must not reach beyond its own place."""
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT unnest([true, false, NULL]) AS a")
        queries = (
            f"SELECT count(*) FROM t WHERE false AND {text}",
            f"SELECT count(*) FROM t WHERE true OR {text}",
            f"SELECT count(*) FROM (SELECT 1 FROM t WHERE {text})",
            f"SELECT max(len([({text}) IS NULL, true])) FROM t",
        )
        found = [connection.execute(query).fetchall() for query in queries]
    return tuple(rows[0][0] for rows in found)


@pytest.mark.parametrize(
    "where",
    [
        "1=1) UNION ALL SELECT * FROM t WHERE (true",
        "true) OR (true",
        "true) -- (",
        "true) /* ( */ OR (a",
        "a) OR ('('='(' AND true",
        "a, true",
        "FROM t",
        "a AS b",
        "a;",
        "",
        " -- nothing",
        "true); DROP TABLE t; SELECT (1",
    ],
)
def test_what_is_not_one_condition_is_refused(where: str) -> None:
    with pytest.raises((PairmillError, duckdb.ParserException)):
        condition(where)


@pytest.mark.parametrize(
    "where", ["a", "a -- why ) OR (", "a OR NOT a", "a /* ) */", "(a) OR (a)", "')' <> '(' OR a", "a IN (FROM t)"]
)
def test_one_condition_is_taken(where: str) -> None:
    assert counts(condition(where))[:2] == (0, 3)


def test_a_condition_may_be_long() -> None:
    assert condition(" OR ".join(f"url = '{number}'" for number in range(3000)))


@settings(deadline=None, max_examples=300)
@given(st.tuples(st.lists(PIECES, max_size=4).map("".join), st.sampled_from(OPERANDS)).map("".join))
def test_a_condition_never_leaves_its_brackets(where: str) -> None:
    try:
        taken = condition(where)
    except (PairmillError, duckdb.Error):
        return
    try:
        none, every, some, two = counts(taken)
    except duckdb.Error:  # of another type than a condition's, or a column that is not there
        return
    assert (none, every, two) == (0, 3, 2)
    assert 0 <= some <= 3
