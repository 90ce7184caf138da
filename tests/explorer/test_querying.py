"""Questions to the catalog: what is refused, what is limited, and that users do not wait for each other."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
import pytest
from explored import pairs

from pipeline.catalog import refresh
from pipeline.errors import PairmillError
from pipeline.explorer.querying import Answer, Querying
from pipeline.explorer.worker import CELL, CELLS
from pipeline.store.dataset import Dataset

T = TypeVar("T")


@pytest.fixture(scope="module")
def dataset(made: Path) -> Dataset:
    dataset = Dataset(made.parent / "data")
    refresh(dataset)
    return dataset


def with_querying(dataset: Dataset, ask: Callable[[Querying], Awaitable[T]], **limits: Any) -> T:
    async def run() -> T:
        querying = Querying(dataset, **limits)
        try:
            return await ask(querying)
        finally:
            await querying.close()

    return asyncio.run(run())


def show(dataset: Dataset, *queries: str, rows: int = 1000, seconds: float = 30, **limits: Any) -> list[Answer | str]:
    """Each query's answer, or what was said instead."""

    async def ask(querying: Querying) -> list[Answer | str]:
        found: list[Answer | str] = []
        for sql in queries:
            try:
                found.append(await querying.show(sql, rows, seconds))
            except PairmillError as error:
                found.append(str(error))
        return found

    return with_querying(dataset, ask, **limits)


def shown(answer: Answer | str) -> list[list[str | None]]:
    assert isinstance(answer, Answer), answer
    return [list(row.values()) for row in answer.rows]


REFUSED = [
    "COPY pairs TO '{inside}/stolen.csv'",
    "COPY (SELECT 1) TO '/tmp/stolen.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}/stolen.csv'",
    "/* a */ EXPLAIN ANALYZE /* b */ COPY (SELECT 1) TO '{inside}/stolen.csv'",
    "EXPLAIN COPY (SELECT 1) TO '{inside}/stolen.csv'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{inside}/stolen.csv'",
    "EXPLAIN (FORMAT json, ANALYZE) COPY (SELECT 1) TO '{inside}/stolen.csv'",
    "EXPLAIN ANALYZE (FORMAT json) WITH a AS (COPY pairs TO '{inside}/stolen.csv') SELECT 1",
    "EXPLAIN (ANALYZE true) SELECT 1",
    "EXPORT DATABASE '{inside}/stolen'",
    "ATTACH '{inside}/stolen.duckdb'",
    "ATTACH ':memory:' AS other",
    "DETACH catalog",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 64",
    "RESET memory_limit",
    "PRAGMA enable_profiling",
    "CALL enable_logging()",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE MACRO kept() AS 1",
    "DROP VIEW pairs",
    "INSERT INTO pairs VALUES (1)",
    "DELETE FROM pairs",
    "UPDATE pairs SET text = ''",
    "UPDATE EXTENSIONS",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE p AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY pairs TO '{inside}/stolen.csv'",
    "PIVOT (SELECT 1 AS a) ON a",
    # DuckDB takes these for SELECTs, and would write.
    "WITH a AS (COPY (SELECT 66 AS x) TO '{inside}/stolen.csv') SELECT 1",
    "WITH a AS MATERIALIZED (/* x */ copy pairs TO '{inside}/stolen.csv') FROM a",
    "SELECT * FROM (WITH a AS (\u00a0COPY pairs TO '{inside}/stolen.csv') SELECT 1)",
    "EXPLAIN ANALYZE WITH a AS (COPY pairs TO '{inside}/stolen.csv') SELECT 1",
    "SUMMARIZE WITH a AS (COPY pairs TO '{inside}/stolen.csv') SELECT 1",
    "",
    "-- nothing",
    "/* nothing */ ;",
]


def test_only_one_statement_that_reads_is_run(dataset: Dataset) -> None:
    inside = str(dataset.root.resolve())
    before = sorted(path for path in dataset.root.rglob("*"))
    queries = [sql.replace("{inside}", inside) for sql in REFUSED]
    for sql, said in zip(queries, show(dataset, *queries), strict=True):
        assert isinstance(said, str), sql
        assert said.startswith(("refused", "there is no statement", "Parser Error")), (sql, said)
    assert sorted(path for path in dataset.root.rglob("*")) == before
    assert not Path("/tmp/stolen.csv").exists()


def test_what_answers_cannot_write_whatever_it_is_talked_into(tmp_path: Path) -> None:
    (tmp_path / "spill").mkdir()
    (tmp_path / "kept").write_text("whole")
    program = (
        "import duckdb, sys; from pipeline.explorer.confined import write_only_in; held = write_only_in(sys.argv[1]);"
        "duckdb.sql(f\"COPY (SELECT 1) TO '{sys.argv[1]}/fine'\"); print(held);"
        "duckdb.sql(f\"COPY (SELECT 1) TO '{sys.argv[2]}'\")"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "spill"), str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.stdout.strip() == "False":
        pytest.skip("this kernel has no Landlock")
    assert done.returncode
    assert "Permission denied" in done.stderr
    assert (tmp_path / "spill" / "fine").exists()
    assert (tmp_path / "kept").read_text() == "whole"


def test_no_file_beyond_the_dataset_is_read(dataset: Dataset, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("password\nhunter2\n")
    link = dataset.root / "link.csv"
    link.symlink_to(secret)
    inside = dataset.root.resolve()
    way = os.path.relpath(secret, inside)
    queries = [
        "FROM read_csv('/etc/passwd')",
        "FROM '/etc/passwd'",
        f"FROM read_text('{inside}/{way}')",
        f"FROM read_csv('{link}')",
        f"FROM read_csv('{inside}/link*.csv')",
        f"FROM read_blob('{secret}')",
        "FROM glob('/etc/*')",
        "FROM parquet_metadata('/etc/passwd')",
        "FROM sniff_csv('/etc/passwd')",
        "FROM read_csv('http://127.0.0.1:9/x.csv')",
        "FROM query('COPY pairs TO ''/tmp/stolen.csv''')",
        "FROM query_table('/etc/passwd')",
        "SELECT getenv('HOME')",
        "FROM sys",
    ]
    try:
        for sql, said in zip(queries, show(dataset, *queries), strict=True):
            assert isinstance(said, str), sql
            assert "Error" in said, (sql, said)
            assert "hunter2" not in said
    finally:
        link.unlink()


def test_files_of_the_dataset_and_plans_can_be_read(dataset: Dataset) -> None:
    files = dataset.images.folder.resolve() / "*.parquet"
    count, plan, analysed, described = show(
        dataset,
        f"SELECT count(*) FROM read_parquet('{files}') -- a comment",
        "EXPLAIN SELECT 1;",
        "/* why */ explain analyze FROM kept",
        "DESCRIBE kept",
    )
    assert shown(count) == [["61"]]
    assert "Projection" in str(shown(plan))
    assert "Total Time" in str(shown(analysed))
    formats = ("(FORMAT json)", "(ANALYZE, format 'json')", "ANALYZE (FORMAT json)", "(FORMAT json, analyze)")
    for answer in show(dataset, *(f"EXPLAIN {options} SELECT 41 + 1" for options in formats)):
        ((_, text),) = shown(answer)
        assert json.loads(str(text))
    (bracketed,) = show(dataset, "EXPLAIN (SELECT 1)")
    assert "Projection" in str(shown(bracketed))
    assert shown(described)[0][:2] == ["uid", "VARCHAR"]


VALUES = {
    "NULL": None,
    "true": "true",
    "'nan'::DOUBLE": "nan",
    "'-inf'::FLOAT": "-inf",
    "170141183460469231731687303715884105727::HUGEINT": "170141183460469231731687303715884105727",
    "1.50::DECIMAL(9, 2)": "1.50",
    "INTERVAL 3 MONTHS": "3 months",
    "DATE '2020-02-29'": "2020-02-29",
    "'\\xAA\\x00'::BLOB": "\\xAA\\x00",
    "'101'::BIT": "101",
    "{'a': 1, 'b': [NULL, 2]}": "{'a': 1, 'b': [NULL, 2]}",
    "MAP {'k': 1}": "{k=1}",
    "[1, 2]": "[1, 2]",
    "[1.0, 2.0]::FLOAT[2]": "[1.0, 2.0]",
    "chr(0) || 'a'": "\0a",
    "'<script>'": "<script>",
    "repeat('x', 100000)": "x" * CELL + "…",
    "'\N{GRINNING FACE}'": "\N{GRINNING FACE}",
}


def test_every_kind_of_value_comes_as_duckdb_writes_it(dataset: Dataset) -> None:
    answers = show(dataset, f"SELECT {', '.join(VALUES)}", 'SELECT 1 AS a, 2 AS a, 3 AS "a (2)"')
    assert shown(answers[0]) == [list(VALUES.values())]
    assert isinstance(answers[1], Answer)
    assert shown(answers[1]) == [["1", "2", "3"]]
    assert [column.name for column in answers[1].columns] == ["a", "a (2)", "a (2) (2)"]


def test_rows_are_limited_and_it_is_said(dataset: Dataset) -> None:
    few, exact, none = show(dataset, "FROM range(11)", "FROM range(10)", "FROM kept WHERE false", rows=10)
    assert isinstance(few, Answer)
    assert isinstance(exact, Answer)
    assert isinstance(none, Answer)
    assert (len(few.rows), few.more) == (10, True)
    assert (len(exact.rows), exact.more) == (10, False)
    assert (none.rows, none.more) == ([], False)
    assert [column.name for column in none.columns] == ["uid", "url", "text", "key", "split"]


def test_an_answer_of_many_columns_has_the_fewer_rows(dataset: Dataset) -> None:
    columns = ", ".join(f"i AS c{place}" for place in range(300))
    (answer,) = show(dataset, f"SELECT {columns} FROM range(1000) t(i)")
    assert isinstance(answer, Answer)
    assert (len(answer.rows), answer.more) == (CELLS // 300, True)


def test_an_order_is_kept_under_the_limit(dataset: Dataset) -> None:
    (answer,) = show(dataset, "SELECT i FROM range(100000) t(i) ORDER BY i DESC", rows=5)
    assert shown(answer) == [[str(i)] for i in range(99999, 99994, -1)]


ENDLESS = [
    "SELECT sum(i) FROM range(1000000000000000) t(i)",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
    # DuckDB cannot interrupt what goes on within one call of a function.
    "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))",
]


@pytest.mark.parametrize("sql", ENDLESS)
def test_an_endless_query_ends_in_time_and_the_next_is_answered(dataset: Dataset, sql: str) -> None:
    async def ask(querying: Querying) -> None:
        started = time.monotonic()
        with pytest.raises(PairmillError, match=r"stopped after 1\.5 s"):
            await querying.ask(sql, (), 1, 1.5)
        assert time.monotonic() - started < 5
        assert (await querying.ask("SELECT 1 AS one", (), 1, 30)).rows == [{"one": 1}]

    with_querying(dataset, ask, at_once=1)


def test_memory_is_limited_for_what_duckdb_counts_and_for_what_it_does_not(dataset: Dataset) -> None:
    listed, texts, after = show(
        dataset,
        "SELECT list(repeat('x', 1000000)) FROM range(2000)",
        "SELECT max(length(repeat('x', 400000000 + i::INT))) FROM range(100) t(i)",
        "SELECT 1",
        memory="300MB",
    )
    assert "Out of Memory" in str(listed)
    assert "memory" in str(texts).lower()
    assert shown(after) == [["1"]]


def test_errors_are_in_duckdbs_words(dataset: Dataset) -> None:
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        for sql in (
            "FROM nowhere",
            "SELECT missing FROM kept",
            "SELEC 1",
            "SELECT 1 / 'a'",
            "SELECT error('<b>mine</b>')",
        ):
            with pytest.raises(duckdb.Error) as expected:
                connection.execute(sql).fetchall()
            (said,) = show(dataset, sql)
            assert isinstance(said, str)
            assert said.splitlines()[0] == str(expected.value).splitlines()[0]


def test_a_slow_query_does_not_hold_up_a_quick_one(dataset: Dataset) -> None:
    async def ask(querying: Querying) -> float:
        await querying.warm()
        await querying.warm()
        slow = asyncio.create_task(querying.ask(ENDLESS[0], (), 1, 60))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        answer = await querying.ask("SELECT count(*) AS n FROM pairs", (), 1, 30)
        waited = time.monotonic() - started
        assert answer.rows == [{"n": len(pairs())}]
        assert not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return waited

    assert with_querying(dataset, ask) < 5


def test_one_browsers_queries_hold_up_neither_the_pages_nor_another_browser(dataset: Dataset) -> None:
    async def ask(querying: Querying) -> None:
        tabs = [asyncio.create_task(querying.show(ENDLESS[0], 1, 60, "one")) for _ in range(8)]
        await asyncio.sleep(0.5)
        started = time.monotonic()
        other, page = await asyncio.gather(
            querying.show("SELECT 1 AS a", 1, 30, "other"), querying.ask("SELECT 2 AS b", (), 1, 30)
        )
        assert (other.rows, page.rows) == ([{"a": "1"}], [{"b": 2}])
        assert time.monotonic() - started < 20
        assert not any(tab.done() for tab in tabs)
        for tab in tabs:
            tab.cancel()
        await asyncio.gather(*tabs, return_exceptions=True)
        assert (await querying.show("SELECT 3 AS c", 1, 30, "one")).rows == [{"c": "3"}]  # the turns have come back

    with_querying(dataset, ask, at_once=3)


def test_a_process_that_was_killed_is_said_to_be(dataset: Dataset) -> None:
    async def ask(querying: Querying) -> None:
        task = asyncio.create_task(querying.ask(ENDLESS[0], (), 1, 60))
        while not querying._running:
            await asyncio.sleep(0.1)
        for process in querying._running:
            process.kill()
        with pytest.raises(PairmillError, match=r"out of memory .* or killed"):
            await task

    with_querying(dataset, ask)


def test_who_goes_away_ends_the_query(dataset: Dataset) -> None:
    async def ask(querying: Querying) -> None:
        for _ in range(3):
            task = asyncio.create_task(querying.ask(ENDLESS[0], (), 1, 60))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        answer = await querying.ask("SELECT 1 AS one", (), 1, 30)  # the turns have come back
        assert answer.rows == [{"one": 1}]

    with_querying(dataset, ask, at_once=1)


def test_parameters_and_arrays(dataset: Dataset) -> None:
    async def ask(querying: Querying) -> tuple[Answer, dict[str, np.ndarray]]:
        answer = await querying.ask("SELECT ? AS text, ?::INT + 1 AS n", ["'; DROP VIEW pairs --", 41], 10, 30)
        return answer, await querying.arrays("SELECT i, nullif(i, 2) AS m FROM range(?) t(i)", [1500], 30)

    answer, arrays = with_querying(dataset, ask)
    assert answer.rows == [{"text": "'; DROP VIEW pairs --", "n": 42}]
    assert np.array_equal(arrays["i"], np.arange(1500))
    assert list(np.flatnonzero(np.ma.getmaskarray(arrays["m"]))) == [2]


def test_the_catalog_that_is_made_anew_is_the_one_that_answers(dataset: Dataset, tmp_path: Path) -> None:
    copy = Dataset(tmp_path / "copy")
    shutil.copytree(dataset.root, copy.root)
    refresh(copy)

    async def ask(querying: Querying) -> None:
        assert "mine" not in await querying.views()
        other = tmp_path / "other.duckdb"
        shutil.copy(copy.catalog, other)
        with duckdb.connect(str(other)) as connection:
            connection.execute("CREATE VIEW mine AS SELECT 7 AS seven")
            connection.execute("COMMENT ON VIEW mine IS 'my own'")
        other.replace(copy.catalog)
        assert (await querying.ask("FROM mine", (), 1, 30)).rows == [{"seven": 7}]
        mine = (await querying.views())["mine"]
        assert (mine.comment, mine.columns[0].name, mine.columns[0].type) == ("my own", "seven", "INTEGER")

    with_querying(copy, ask)


def test_a_table_on_another_disk_is_read_through_its_link(dataset: Dataset, tmp_path: Path) -> None:
    copy = Dataset(tmp_path / "copy")
    shutil.copytree(dataset.root, copy.root)
    (copy.root / "images").rename(tmp_path / "elsewhere")
    (copy.root / "images").symlink_to(tmp_path / "elsewhere")
    refresh(copy)
    (answer,) = show(copy, "SELECT count(*) FROM images")
    assert shown(answer) == [["61"]]


def test_a_dataset_without_a_catalog_has_a_remedy(tmp_path: Path) -> None:
    (said,) = show(Dataset(tmp_path), "SELECT 1")
    assert "make catalog" in str(said)
