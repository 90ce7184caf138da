"""What `make sql` writes: read back by others' readers, streamed, whole or not at all, and quiet when nobody reads."""

import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_dataset import Image, jpeg, made_dataset

from pipeline.cli import main
from pipeline.errors import PairmillError
from pipeline.sql_shell import Format
from pipeline.sql_shell.output import MAX_ROWS, answer
from pipeline.sql_shell.session import Session
from pipeline.store.dataset import Dataset

REPOSITORY = Path(__file__).parents[2]
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
TWICE = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    import numpy as np

    picture = jpeg(np.zeros((8, 8, 3), np.uint8))
    pairs = [(f"http://h/{number}", f"text {number}") for number in range(5)]
    return made_dataset(tmp_path_factory.mktemp("data"), pairs, [[Image(url, picture) for url, _ in pairs]])


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session on a catalog without views."""
    path = tmp_path_factory.mktemp("catalog") / "catalog.duckdb"
    duckdb.connect(str(path)).close()
    with Session(path) as session:
        yield session


def started(dataset: Dataset, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.cli", "sql", "--data", str(dataset.root), *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True, **more)


def values(rows: list[tuple[int, str | None]]) -> str:
    """A query of these rows, which has no letter in it that a query could misread."""
    cells = (
        f"({number}, {'NULL' if text is None else '[' + ','.join(map(str, map(ord, text))) + ']::INT[]'})"
        for number, text in rows
    )
    letters = "array_to_string(list_transform(t.codes, lambda code: chr(code)), '')"
    return (
        f'SELECT t.number AS "the number", {letters} AS "a,""b""" '
        f"FROM (VALUES {', '.join(cells)}) AS t(number, codes) ORDER BY 1"
    )


@TWICE
@given(st.lists(st.tuples(st.integers(-(2**31), 2**31), st.none() | TEXTS), min_size=1, unique_by=lambda row: row[0]))
def test_each_format_is_read_back_by_its_own_reader(
    empty: Session, capfdbinary: pytest.CaptureFixture[bytes], rows: list[tuple[int, str | None]]
) -> None:
    def written(form: Format) -> bytes:
        answer(empty, values(rows), form)
        return capfdbinary.readouterr().out

    rows = sorted(rows, key=lambda row: row[0])
    named = [{"the number": number, 'a,"b"': text} for number, text in rows]
    assert json.loads(written(Format.JSON)) == named
    assert [json.loads(line) for line in written(Format.JSONL).split(b"\n")[:-1]] == named
    assert pq.read_table(io.BytesIO(written(Format.PARQUET))).to_pylist() == named
    header, *read = csv.reader(io.StringIO(written(Format.CSV).decode(), newline=""), strict=True)
    assert (header, read) == (["the number", 'a,"b"'], [[str(number), text or ""] for number, text in rows])


@TWICE
@given(TEXTS)
def test_nothing_that_a_terminal_would_obey_stands_in_a_table(
    empty: Session, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    answer(empty, values([(1, text)]), Format.TABLE)
    shown = capsys.readouterr().out
    assert not [letter for letter in shown if letter != "\n" and (ord(letter) < 32 or 127 <= ord(letter) < 160)]
    assert not set(shown) & set("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_values_of_every_type_are_written_as_iso_and_rfc_have_them(
    empty: Session, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    answer(
        empty,
        "SELECT DATE '2020-02-03' AS d, TIMESTAMP '2020-02-03 04:05:06' AS t, true AS b, NULL AS n, '' AS e, "
        "'x\"y\nz' AS s, [1, 2] AS l, {'a': 'q'} AS r, 170141183460469231731687303715884105727 AS h",
        Format.CSV,
    )
    header, row = csv.reader(io.StringIO(capfdbinary.readouterr().out.decode(), newline=""))
    assert header == list("dtbneslrh")
    assert row[:6] == ["2020-02-03", "2020-02-03 04:05:06", "true", "", "", 'x"y\nz']
    assert row[6:] == ["[1, 2]", "{'a': q}", "170141183460469231731687303715884105727"]


def test_of_a_long_result_the_first_rows_are_shown_and_all_counted(
    empty: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(empty, "SELECT range + 7000000 AS n FROM range(123456)", Format.TABLE)
    shown = capsys.readouterr().out
    assert [int(word) for word in shown.split() if word.startswith("7000") and word.isdigit()] == list(
        range(7_000_000, 7_000_000 + MAX_ROWS)
    )
    assert shown.endswith(f"┘\n  the first {MAX_ROWS} of 123,456 rows\n")
    answer(empty, f"SELECT range AS n FROM range({MAX_ROWS})", Format.TABLE)
    assert "first" not in capsys.readouterr().out


def test_each_result_of_a_script_is_a_table_but_a_file_holds_one(
    empty: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (
        "SET threads = 1; SELECT 11 AS a; -- then ;\n"
        "CREATE OR REPLACE TEMP MACRO twice(x) AS 2 * x; SELECT twice(21) AS b /* ; */ ;;"
    )
    answer(empty, script, Format.TABLE)
    shown = capsys.readouterr().out
    assert shown.index("11") < shown.index("42")
    assert shown.count("┌") == 2
    with pytest.raises(PairmillError, match=r"one result, and this gives 2\n"):
        answer(empty, script, Format.CSV, tmp_path / "rows.csv")
    assert not list(tmp_path.iterdir())
    answer(empty, "CREATE OR REPLACE TEMP TABLE t AS SELECT 5 AS c; FROM t", Format.CSV, tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == "c\n5\n"


@pytest.mark.parametrize("sql", ["", "  -- nothing\n", ";"])
def test_no_question_says_how_to_ask(empty: Session, sql: str) -> None:
    with pytest.raises(PairmillError, match="make sql Q="):
        answer(empty, sql, Format.TABLE)


def test_explain_shows_the_plan_as_duckdb_draws_it(empty: Session, capsys: pytest.CaptureFixture[str]) -> None:
    answer(empty, "EXPLAIN SELECT sum(range) FROM range(9)", Format.TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert any("RANGE" in line.upper() for line in lines)


@pytest.mark.parametrize("form", [Format.TABLE, *Format])
def test_what_is_wrong_is_said_in_duckdbs_words_with_its_place(empty: Session, form: Format, tmp_path: Path) -> None:
    for sql, place in {"SELECT 1 +\n nowhere": " nowhere\n ^^^^^^^", "SELECT 1;\nSELEC 2": "SELEC 2\n^^^^^"}.items():
        with pytest.raises(PairmillError) as raised:
            answer(empty, sql, form, tmp_path / "out")
        *_, line, caret = str(raised.value).splitlines()
        text, mark = place.split("\n")
        before = line.index(text)
        assert (line[before:], caret[before:]) == (text, mark)


@pytest.mark.parametrize("form", list(Format))
def test_a_file_is_whole_or_as_it_was(empty: Session, tmp_path: Path, form: Format) -> None:
    out = tmp_path / "rows.out"
    out.write_text("before")
    late = "SELECT CASE WHEN range = 1500000 THEN error('late') ELSE range END AS n FROM range(2000000)"
    with pytest.raises(PairmillError, match="late"):
        answer(empty, f"SELECT max(n) FROM ({late})" if form is Format.TABLE else late, form, out)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.out"]
    assert out.read_text() == "before"


def test_an_error_that_comes_late_is_said_behind_the_rows(dataset: Dataset) -> None:
    late = "SELECT CASE WHEN range = 1500000 THEN error('late') ELSE range END AS n FROM range(2000000)"
    process = started(dataset, "--format", "csv", late, stdout=subprocess.PIPE)
    rows, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert rows.startswith(b"n\n0\n1\n")
    assert b"late" in said
    assert b"Traceback" not in said


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.csv", "csv"), ("a.jsonl.gz", "jsonl"), ("a.json", "json"), ("a.parquet", "parquet"), ("a.csv.zst", "csv")],
)
def test_a_files_suffix_names_its_format_and_compression(
    dataset: Dataset, tmp_path: Path, name: str, form: str
) -> None:
    out = tmp_path / "new" / name
    assert main(["sql", "--data", str(dataset.root), "--out", str(out), "SELECT 41 + 1 AS n"]) == 0
    if form == "parquet":
        read = pq.read_table(out).to_pylist()
    else:
        with pa.input_stream(out, compression="detect") as file:
            text = file.read().decode()
        read = list(csv.DictReader(io.StringIO(text))) if form == "csv" else json.loads(text)
    assert read in ([{"n": 42}], [{"n": "42"}], {"n": 42})


def test_an_unknown_format_names_those_there_are(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", "--data", str(dataset.root), "--format", "xls", "FROM pairs"]) == 1
    assert "one of table, csv, json, jsonl, parquet" in capsys.readouterr().err


def test_a_variable_of_the_program_is_no_table(empty: Session) -> None:
    for name in ("statement", "session", "relation", "sys"):
        with pytest.raises(PairmillError, match=f"Table with name {name} does not exist"):
            answer(empty, f"FROM {name}", Format.TABLE)


def test_standard_output_gets_the_rows_alone_and_after_what_is_there(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("before\n")
    with open(out, "ab") as file:
        process = started(dataset, "--format", "csv", "SELECT count(*) AS n FROM pairs", stdout=file)
    assert process.communicate(timeout=60) == (None, b"")
    assert out.read_text() == "before\nn\n5\n"


@pytest.mark.parametrize("form", ["csv", "jsonl", "table"])
def test_a_reader_that_has_had_enough_is_no_error(dataset: Dataset, form: str) -> None:
    process = started(
        dataset,
        "--format",
        form,
        "SELECT repeat('x', 999) AS t FROM range(100000000000)"
        if form != "table"
        else "SELECT repeat('x', 199) AS t FROM range(200); " * 90,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == b""
    assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("form", ["csv", "table"])
def test_ctrl_c_ends_a_query_at_once(dataset: Dataset, form: str) -> None:
    """Also while DuckDB waits for a reader that does not read."""
    rows = "SELECT 'row' FROM range(100000000000)" if form == "csv" else "SELECT count(*) FROM range(10000000000000)"
    process = started(
        dataset, "--format", form, "SELECT 'it begins'; " * (form == "table") + rows, stdout=subprocess.PIPE
    )
    assert process.stdout
    while b"row" not in (line := process.stdout.readline()) and b"begins" not in line:
        assert line
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    start = time.monotonic()
    said = process.communicate(timeout=20)[1]
    assert (process.returncode, time.monotonic() - start < 5) == (130, True)
    assert b"Traceback" not in said
    assert said.splitlines()[-1] == b"error: interrupted"  # and nothing of carrying on, which a query cannot


def test_memory_does_not_grow_with_the_rows(dataset: Dataset) -> None:
    def peak(rows: int) -> int:
        """Kilobytes."""
        sql = f"SELECT range AS n, 'text ' || range AS t FROM range({rows})"
        process = started(
            dataset, "--format", "csv", sql, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0
        return used.ru_maxrss

    assert peak(8_000_000) - peak(8) < 100_000, "held, the rows take 300 MB and more"


def make(dataset: Dataset, *variables: str) -> subprocess.CompletedProcess[str]:
    program = f'MILL="{sys.executable}" -m pipeline.cli'
    command = ["make", "--no-print-directory", "-o", ".venv/.ready", "sql", f"DATA={dataset.root}", program, *variables]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "text",
    ["it's $5", "$HOME $(HOME) `id` \\", 'a "b" c', "$$ $(shell touch nowhere", "two\nlines # not a comment", "%;"],
)
def test_make_hands_the_query_on_as_it_was_written(dataset: Dataset, text: str) -> None:
    quoted = text.replace("'", "''")
    process = make(dataset, f"Q=-- first\nSELECT '{quoted}' AS t", "FORMAT=jsonl")
    assert (process.stderr, json.loads(process.stdout)) == ("", {"t": text})


def test_make_writes_to_a_file_and_fails_as_the_query_does(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "a b.parquet"
    assert make(dataset, "Q=SELECT 7 AS n", f"OUT={out}").stdout == ""
    assert pq.read_table(out).to_pylist() == [{"n": 7}]
    wrong = make(dataset, "Q=FROM nowhere")
    assert wrong.returncode != 0
    assert "FROM nowhere" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_what_is_no_file_is_not_replaced_by_one(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, link, target = tmp_path / "pipe.csv", tmp_path / "link.csv", tmp_path / "target.csv"
    os.mkfifo(pipe)
    target.write_text("before")
    link.symlink_to(target)
    assert main(["sql", "--data", str(dataset.root), "--out", str(pipe), "SELECT 1 AS n"]) == 1
    assert "is no file" in capsys.readouterr().err
    assert pipe.is_fifo()
    assert main(["sql", "--data", str(dataset.root), "--out", str(link), "SELECT 1 AS n"]) == 0
    assert link.is_symlink()
    assert target.read_text().split() == ["n", "1"]


def test_json_has_no_nan(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    query = "SELECT 'nan'::DOUBLE AS a, '-inf'::FLOAT AS b, 1.5::DOUBLE AS c, 'NaN' AS d"
    assert main(["sql", "--data", str(dataset.root), "--out", str(out), query]) == 0
    assert json.loads(out.read_text()) == [{"a": None, "b": None, "c": 1.5, "d": "NaN"}]


DOUBLES = st.floats() | st.none()
STRINGS = TEXTS | st.sampled_from(["NaN", "a:NaN,", '"NaN', "\\", '\\"inf', "-Infinity", "[NaN]"])


def without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return {name: without_nan(item) for name, item in value.items()} if isinstance(value, dict) else value


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@TWICE
@given(st.lists(DOUBLES), st.dictionaries(st.sampled_from(["x", "inf", 'n"aN']), DOUBLES, min_size=1), STRINGS, DOUBLES)
def test_json_has_no_nan_however_deep(
    empty: Session,
    capfdbinary: pytest.CaptureFixture[bytes],
    numbers: list[float | None],
    fields: dict[str, float | None],
    text: str,
    number: float | None,
) -> None:
    def double(value: float | None) -> str:
        return "NULL::DOUBLE" if value is None else f"'{value!r}'::DOUBLE"

    quoted = "array_to_string(list_transform([{}]::INT[], lambda code: chr(code)), '')".format(
        ",".join(map(str, map(ord, text)))
    )
    struct = "{" + ", ".join(f"'{name}': {double(value)}" for name, value in fields.items()) + "}"
    listed = f"[{', '.join(map(double, numbers))}]::DOUBLE[]"
    answer(
        empty,
        f"SELECT {listed} AS l, {struct} AS s, [{{'deep': {listed}, 't': {quoted}}}] AS d, {quoted} AS t, "
        f"{double(number)} AS n, {double(number)} AS n",
        Format.JSONL,
    )
    found = json.loads(capfdbinary.readouterr().out, parse_constant=no_constant)
    deep = [{"deep": numbers, "t": text}]
    assert found == without_nan({"l": numbers, "s": fields, "d": deep, "t": text, "n": number, "n_1": number})


def test_values_of_every_type_are_json_as_duckdb_writes_them(
    empty: Session, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    query = (
        "SELECT TIMESTAMP '2020-01-01 01:02:03' AS t, 'a\\xAA'::BLOB AS b, INTERVAL 1 DAY AS i, "
        "[DATE '2020-01-01'] AS l, 1.50::DECIMAL(9, 2) AS d, 2::HUGEINT AS h, map {1: 2} AS m, "
        "NULL::UUID AS u, '101'::BIT AS bits, "
        "0.1::FLOAT AS f, 'a'::ENUM('a') AS e, '{\"a\": [1, \"NaN\"]}'::JSON AS j"
    )
    answer(empty, query, Format.JSONL)
    (expected,) = duckdb.sql(f"SELECT to_json(r) FROM ({query}) AS r").fetchall()
    assert json.loads(capfdbinary.readouterr().out) == json.loads(expected[0])


PIVOT = "/* wide */ PIVOT (VALUES ('a', 1), ('b', 5)) AS t(name, n) ON name USING sum(n)"


@pytest.mark.parametrize("form", list(Format))
def test_a_pivot_is_one_question(empty: Session, form: Format, tmp_path: Path) -> None:
    out = tmp_path / f"rows.{form}"
    for sql in (PIVOT, f"FROM ({PIVOT})", f"CREATE OR REPLACE TEMP TABLE wide AS ({PIVOT}); FROM wide"):
        answer(empty, sql, form, out)
        if form is Format.PARQUET:
            assert pq.read_table(out).to_pylist() == [{"a": 1, "b": 5}]
        else:
            assert re.findall(r"\b[0-9ab]\b", out.read_text()) in (["a", "b", "1", "5"], ["a", "1", "b", "5"])


def test_the_plan_of_a_pivot_is_drawn(empty: Session, capsys: pytest.CaptureFixture[str]) -> None:
    answer(empty, f"EXPLAIN {PIVOT}", Format.TABLE)
    assert "Aggregate" in capsys.readouterr().out
