"""Stage ingest: what a list may hold, and what becomes of each row."""

import csv
import gzip
import io
import json
import random
import subprocess
import sys
import time
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from command import committed_bytes, finish, kill_hard, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import ingest
from pipeline.engine import InlineEngine, LocalEngine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.lists import merging, pairing, row_groups
from pipeline.lists import rows as list_rows
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset


def job_of(data: Path, inputs: list[Path], engine: Any = None, **section: object) -> Job:
    recipe = Recipe.model_validate({"name": "t", "ingest": {"inputs": [str(path) for path in inputs], **section}})
    return Job("ingest", recipe, Dataset(data), engine or InlineEngine())


class Ingested:
    """The stage's tables, read back."""

    def __init__(self, data: Path) -> None:
        dataset = Dataset(data)
        paths = dataset.pairs.paths(".parquet")
        self.shards = [pq.read_table(path).to_pylist() for path in paths if not path.name.startswith("repeated")]
        self.rows = [row for shard in self.shards for row in shard]
        self.repeated = [row for p in paths if p.name.startswith("repeated") for row in pq.read_table(p).to_pylist()]
        self.quarantine = [row for p in dataset.quarantine.paths(".parquet") for row in pq.read_table(p).to_pylist()]
        self.rows_in = dataset.quarantine.manifest.count("rows_in")
        assert self.rows_in == len(self.rows) + len(self.repeated) + len(self.quarantine)
        assert {*self.reasons} <= {*list_rows.REASONS, *pairing.REASONS}

    @property
    def pairs(self) -> set[tuple[str, str]]:
        return {(row["url"], row["text"]) for row in self.rows}

    @property
    def reasons(self) -> list[str]:
        return sorted(row["reason"] for row in self.quarantine)


def ingested(data: Path, *inputs: Path, **section: object) -> Ingested:
    ingest.run(job_of(data, list(inputs), **section))
    return Ingested(data)


def put(folder: Path, content: bytes, name: str = "list.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def read(tmp_path: Path, content: bytes) -> Ingested:
    return ingested(tmp_path / "data", put(tmp_path, content))


GOOD = {("http://a/1", "one"), ("http://a/2", "two")}


@pytest.mark.parametrize(
    "content",
    [
        b"url,text\nhttp://a/1,one\nhttp://a/2,two\n",
        b"url,text\nhttp://a/1,one\nhttp://a/2,two",
        b"url,text\r\nhttp://a/1,one\r\nhttp://a/2,two\r\n",
        b"\xef\xbb\xbfurl,text\nhttp://a/1,one\nhttp://a/2,two\n",
        b'\xef\xbb\xbf"url","text"\r\n"http://a/1","one"\r\n"http://a/2","two"\r\n',
        b"text,url\none,http://a/1\ntwo,http://a/2\n",
        b"url,text\n\nhttp://a/1,one\n\n\nhttp://a/2,two\n\n",
        b'url,text\nhttp://a/1," one\t"\n" http://a/2 ","\n two"\n',
        b"url,text,\nhttp://a/1,one,\nhttp://a/2,two,\n",
        b",url,text\n0,http://a/1,one\n1,http://a/2,two\n",
        b"url,text\rhttp://a/1,one\rhttp://a/2,two\r",
        b"url,text\nhttp://a/1,one\r\nhttp://a/2,two\n",
        b"url,text\r\nhttp://a/1,one\nhttp://a/2,two\r",
    ],
    ids=[
        *(
            "lf",
            "no-end",
            "crlf",
            "bom",
            "quoted",
            "swapped",
            "empty-lines",
            "blanks",
            "trailing-comma",
            "pandas-index",
        ),
        *("cr", "mixed", "all-three"),
    ],
)
def test_forms_of_csv_that_say_the_same(tmp_path: Path, content: bytes) -> None:
    result = read(tmp_path, content)
    assert (result.pairs, result.reasons) == (GOOD, [])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"http://a/3,\xff\xfe", "not UTF-8"),
        (b"http://a/3", "too few columns"),
        (b"http://a/3,x,y", "too many columns"),
        (b'http://a/3,"x"y', "text behind a closing quote"),
        (b",x", "no url"),
        (b"http://a/3,", "no text"),
        (b'http://a/3,"  \t "', "no text"),
        (b"http://a/3,&nbsp;&#8203;\x07", "no text"),
        (b"http://a/3,x\x00y", "NUL byte in the text"),
        (b"http://a/" + b"x" * 8192 + b",x", "url over 8192 characters"),
        (b"http://a/3," + b"&amp;" * 2001, "text over 10000 characters"),
        ("http://a/3,\u00a0\u2003".encode(), "no text"),
        (b"http://a/3 4,x", "blank or control character in the url"),
        (b'"http://a/3\n4",x', "blank or control character in the url"),
        (b"http://a/3\x004,x", "blank or control character in the url"),
        (b"http://a/3," + b"x" * 10_001, "text over 10000 characters"),
        (b"http://a/3," + b"x" * 10_000_000, "text over 10000 characters"),
        (b"http://a/3," + b"x" * 30_000_000, "row over 16000000 bytes"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason_and_the_others_stay(tmp_path: Path, bad: bytes, reason: str) -> None:
    result = read(tmp_path, b"url,text\nhttp://a/1,one\n" + bad + b"\nhttp://a/2,two\n")
    assert (result.pairs, result.reasons) == (GOOD, [reason])
    (row,) = result.quarantine
    assert (row["file"].endswith("list.csv"), row["row"]) == (True, 2)
    assert len(row["content"] or "") <= 500


def test_a_quote_that_never_closes_takes_its_line_and_no_more(tmp_path: Path) -> None:
    result = read(tmp_path, b'url,text\nhttp://a/1,one\nhttp://a/3,"three\nhttp://a/2,two\n')
    assert (result.pairs, result.reasons) == (GOOD, ["unclosed quote"])
    assert sorted(row["row"] for row in result.rows) == [1, 3]


def test_a_quoted_newline_is_a_blank(tmp_path: Path) -> None:
    result = read(tmp_path, b'url,text\nhttp://a/1,"one\ntwo\r\nthree"\n')
    assert result.pairs == {("http://a/1", "one two three")}


def test_text_of_ten_thousand_characters_is_still_a_text(tmp_path: Path) -> None:
    assert read(tmp_path, "url,text\nhttp://a/1,{}\n".format("ä" * 10_000).encode()).reasons == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"http://a/1,one\nhttp://a/2,two\n", "no column 'url'"),
        (b"url,caption\nhttp://a/1,one\n", "no column 'text'; it has url, caption"),
        (b"url\ttext\nhttp://a/1\tone\n", "no column 'url'"),
        ("url,text\nhttp://a/1,one\n".encode("utf-16"), "not UTF-8"),
        (b"url,text\n", "no readable pair"),
        (b"url,text\n,\n", "no readable pair"),
        (b"url,url,text\na,b,c\n", "repeats"),
        (b"url,text,Uid,list_uid\na,b,c,d\n", "'list_uid' repeats"),
        (b"url,text,a,A\na,b,c,d\n", "'A' repeats"),
        (b'"url,text\nhttp://a/1,one\n', "unclosed quote"),
    ],
)
def test_an_unusable_list_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(PairmillError) as error:
        read(tmp_path, content)
    assert said in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "inputs", ["absent.csv", "*.csv", ".", "list.xlsx", "nowhere://list.csv", "http://127.0.0.1:9/list.csv"]
)
def test_an_input_that_is_not_there_is_named(tmp_path: Path, inputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, b"not a sheet", "list.xlsx")
    with pytest.raises(PairmillError, match=r"correct|name its files|convert"):
        ingest.run(job_of(tmp_path / "data", [Path(inputs) if "://" not in inputs else inputs]))  # type: ignore[list-item]


def test_a_parquet_list_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a/1"] * 99, "text": ["one"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PairmillError, match=r"list\.parquet"):
        ingested(tmp_path / "data", path)


def test_a_parquet_list_without_the_columns_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"link": ["http://a/1"]}), path)
    with pytest.raises(PairmillError, match="no column 'url'; it has link"):
        ingested(tmp_path / "data", path)


def test_parquet_nulls_are_quarantined_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    table = pa.table({"url": ["http://a/1", None, "http://a/3"], "text": ["one", "two", None]})
    pq.write_table(table, path)
    result = ingested(tmp_path / "data", path)
    assert [(row["row"], row["reason"]) for row in result.quarantine] == [(2, "no url"), (3, "no text")]


def test_other_names_for_the_columns(tmp_path: Path) -> None:
    path = put(tmp_path, b'LINK,"my ""caption""\'s"\nhttp://a/1,one\nhttp://a/2,two\n')
    result = ingested(tmp_path / "data", path, url_column="LINK", text_column='my "caption"\'s')
    assert result.pairs == GOOD


def test_a_path_with_quotes_and_blanks_is_read(tmp_path: Path) -> None:
    path = put(tmp_path / 'it\'s a "folder"', b"url,text\nhttp://a/1,one\nhttp://a/2,two\n", "my list.csv")
    assert ingested(tmp_path / "data's", path).pairs == GOOD


def test_extra_columns_are_kept_also_where_files_differ_in_them(tmp_path: Path) -> None:
    first = put(tmp_path, b"id,url,text,score\n7,http://a/1,one,0.5\n")
    second = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a/2"], "text": ["two"], "score": [3], "lang": ["en"]}), second)
    rows = {row["url"]: row for row in ingested(tmp_path / "data", first, second, shards=3).rows}
    assert (rows["http://a/1"]["id"], rows["http://a/1"]["score"], rows["http://a/1"]["lang"]) == ("7", "0.5", None)
    assert (rows["http://a/2"]["id"], str(rows["http://a/2"]["score"]), rows["http://a/2"]["lang"]) == (None, "3", "en")


HOSTILE = (
    "copy",
    "status",
    "sha256",
    "key",
    "split",
    "n",
    "words",
    "frequency",
    "rule",
    "stage",
    "value",
    "order",
    "http_status",
)


def test_extra_columns_may_have_any_name(tmp_path: Path) -> None:
    content = f"url,text,{','.join(HOSTILE)}\nhttp://a/1,one,{','.join('x' * len(HOSTILE))}\n"
    (row,) = read(tmp_path, content.encode()).rows
    assert {name: row[name] for name in HOSTILE} == dict.fromkeys(HOSTILE, "x")


def test_a_parquet_list_nested_without_end_is_named(tmp_path: Path) -> None:
    column = pa.array([1])
    for _ in range(70):
        column = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), column)
    pq.write_table(pa.table({"url": ["http://a/1"], "text": ["one"], "x": column}), tmp_path / "list.parquet")
    with pytest.raises(PairmillError, match=r"list\.parquet"):
        ingested(tmp_path / "data", tmp_path / "list.parquet")


def test_repeated_pairs_are_counted_once_across_files(tmp_path: Path) -> None:
    first = put(tmp_path, b"url,text\nhttp://a/1,one\nhttp://a/1, one\nhttp://a/1,another\n")
    second = put(tmp_path, b"url,text\nhttp://a/1,one\nhttp://a/2,two\n", "second.csv")
    result = ingested(tmp_path / "data", first, second)
    assert result.pairs == {*GOOD, ("http://a/1", "another")}
    assert [Path(row["file"]).name + str(row["row"]) for row in result.repeated] == ["list.csv2", "second.csv1"]


def test_the_same_file_twice_only_repeats(tmp_path: Path) -> None:
    path = put(tmp_path, b"url,text\nhttp://a/1,one\nhttp://a/2,two\n")
    result = ingested(tmp_path / "data", path, path)
    assert (len(result.rows), len(result.repeated)) == (2, 2)


def test_a_glob_reads_all_its_files(tmp_path: Path) -> None:
    put(tmp_path / "lists", b"url,text\nhttp://a/1,one\n", "1.csv")
    put(tmp_path / "lists", b"url,text\nhttp://a/2,two\n", "2.csv")
    assert ingested(tmp_path / "data", tmp_path / "lists" / "*.csv").pairs == GOOD


def test_urls_and_texts_are_normalised(tmp_path: Path) -> None:
    result = read(tmp_path, "\ufeffurl,text\n\thttp://a/1 ,\u2003e\u0301t\u00a0\t e \n".encode())
    assert result.pairs == {("http://a/1", "\u00e9t e")}


def test_the_text_as_it_came_stands_beside_where_it_was_changed(tmp_path: Path) -> None:
    result = read(tmp_path, "url,text\nhttp://a/1,Tom &amp; schÃ¶n\nhttp://a/2, two\nhttp://a/3,three\n".encode())
    assert {row["text"]: row["original"] for row in result.rows} == {
        "Tom & schön": "Tom &amp; schÃ¶n",
        "two": " two",
        "three": None,
    }


def test_a_row_with_several_texts_makes_a_pair_of_each(tmp_path: Path) -> None:
    texts = [["one", " one", "", "two"], [], None, [None, "three"], [f"text {n}" for n in range(101)]]
    urls = [f"http://a/{n}" for n in range(1, 6)]
    records = [{"url": url, "text": text, "id": url[-1]} for url, text in zip(urls, texts, strict=True)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "list.parquet")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("list.parquet", "list.jsonl"):
        result = ingested(tmp_path / f"data-{name}", tmp_path / name)
        assert sorted((row["row"], row["id"], row["text"]) for row in result.rows) == [
            (1, "1", "one"),
            (1, "1", "two"),
            (4, "4", "three"),
        ]
        assert [row["row"] for row in result.repeated] == [1]
        assert [(row["row"], row["reason"]) for row in result.quarantine] == [
            *((n, "no text") for n in (1, 2, 3, 4)),
            (5, "over 100 texts"),
        ]


def test_tags_language_and_scores_have_their_columns(tmp_path: Path) -> None:
    first = put(
        tmp_path, b"url,text,kw,ln,score\nhttp://a/1,one,a;b,en,0.31\nhttp://a/2,two,,,nan\nhttp://a/3,x,,,high\n"
    )
    second = tmp_path / "list.parquet"
    table = {"url": ["http://a/4", "http://a/5"], "text": ["four", "five"], "score": [1, None], "tags": ["x", "y"]}
    pq.write_table(pa.table(table), second)
    named = {"tags_column": "kw", "lang_column": "ln", "numbers": ["score"]}
    result = ingested(tmp_path / "data", first, second, **named)
    rows = {row["text"]: (row["tags"], row["lang"], row["score"], row["list_tags"]) for row in result.rows}
    assert rows == {
        "one": ("a;b", "en", 0.31, None),
        "two": (None, None, None, None),
        "four": (None, None, 1.0, "x"),
        "five": (None, None, None, "y"),
    }
    assert [(row["row"], row["reason"]) for row in result.quarantine] == [(3, "not a number")]


@pytest.mark.parametrize("asked", [{"tags_column": "no"}, {"lang_column": "no"}, {"numbers": ["no"]}])
def test_a_column_that_no_list_has_is_named(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(PairmillError, match=f"no list has the column that {next(iter(asked))} names"):
        ingested(tmp_path / "data", put(tmp_path, b"url,text\nhttp://a/1,one\n"), **asked)


@pytest.mark.parametrize("asked", [{"text_column": "url"}, {"numbers": ["a", "a"]}, {"columns": ["a", "A"]}])
def test_a_column_has_one_meaning(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"twice"):
        job_of(tmp_path, [tmp_path], **asked)


@pytest.mark.parametrize(
    ("values", "number"),
    [
        (["1", "-2.5e-3", "+.5", "7."], [1.0, -0.0025, 0.5, 7.0]),
        (["", " NaN ", "None", "null", "n/a"], [None] * 5),
    ],
)
def test_how_numbers_are_written_in_csv(tmp_path: Path, values: list[str], number: list[float | None]) -> None:
    lines = "".join(f"http://a/{n},text {n},{value}\n" for n, value in enumerate(values))
    result = ingested(tmp_path / "data", put(tmp_path, f"url,text,s\n{lines}".encode()), numbers=["s"])
    assert [row["s"] for row in sorted(result.rows, key=lambda row: row["row"])] == number
    assert result.reasons == []


@pytest.mark.parametrize("value", ["0x1", "1,5", "1_0", "inf", "--1", "1e", "one", "\u0661"])
def test_what_is_no_number_in_csv(tmp_path: Path, value: str) -> None:
    content = f'url,text,s\nhttp://a/1,one,1\nhttp://a/2,two,"{value}"\n'
    result = ingested(tmp_path / "data", put(tmp_path, content.encode()), numbers=["s"])
    assert (len(result.rows), result.reasons) == (1, ["not a number"])


def test_columns_of_different_types_in_different_lists_find_a_common_one(tmp_path: Path) -> None:
    def column(values: Any, type: pa.DataType | None = None) -> pa.Array:
        return pa.array([values], type)

    variants = {
        "number": [column(3), column(0.5), column(None), column(7, pa.int8())],
        "text": [column(3), column("x"), column(True), column([1, 2])],
        "list": [column(["a"]), column([]), column(None), column(["b", "c"])],
        "boxes": [column([[0.5, 1.0]]), column([[1, 2], [3, 4]]), column(None), column([])],
        "large": [column(2**64 - 1, pa.uint64()), column(-1), column(0), column(1)],
        "struct": [column({"a": 1}), column({"b": "x"}), column(None), column("plain")],
        "structs": [column([{"a": 1}]), column([{"b": "x"}]), column([]), column(None)],
        "empty": [column([]), column(None), column([[]]), column([])],
        "time": [column(datetime(2024, 1, 2)), column(date(2024, 1, 3)), column(None), column("later")],
        "bytes": [column(b"\xff"), column("x"), column(None), column(b"y")],
        "nothing": [column(None)] * 4,
    }
    paths = []
    for index in range(4):
        url = pa.array([f"http://a/{index}"])
        columns = {"url": url, "text": url} | {f"c_{name}": arrays[index] for name, arrays in variants.items()}
        paths.append(tmp_path / f"{index}.parquet")
        pq.write_table(pa.table(columns), paths[-1])
    result = ingested(tmp_path / "data", *paths, shards=2)
    rows = sorted(result.rows, key=lambda row: row["url"])
    assert {name: [row[f"c_{name}"] for row in rows] for name in variants} == {
        "number": [3.0, 0.5, None, 7.0],
        "text": ["3", "x", "true", "[1, 2]"],
        "list": [["a"], [], None, ["b", "c"]],
        "boxes": [[[0.5, 1.0]], [[1.0, 2.0], [3.0, 4.0]], None, []],
        "large": [str(2**64 - 1), "-1", "0", "1"],
        "struct": ['{"a": 1}', '{"b": "x"}', None, "plain"],
        "structs": ['[{"a": 1}]', '[{"b": "x"}]', "[]", None],
        "empty": ["[]", None, "[[]]", "[]"],
        "time": ["2024-01-02 00:00:00.000000", "2024-01-03", None, "later"],
        "bytes": [b"\xff", b"x", None, b"y"],
        "nothing": [None] * 4,
    }
    with Dataset(tmp_path / "data").connect() as connection:
        assert len(connection.execute("FROM pairs").fetchall()) == 4
        assert connection.execute("SELECT sum(c_number), any_value(c_text) IS NULL FROM pairs").fetchone() == (
            10.5,
            False,
        )


def test_a_list_may_have_columns_with_our_names(tmp_path: Path) -> None:
    (row,) = read(tmp_path, b"UID,url,text,file,original,row\nu,http://a/1,one,f,o,r\n").rows
    assert {name: value for name, value in row.items() if name.startswith("list_")} == {
        "list_UID": "u",
        "list_file": "f",
        "list_original": "o",
        "list_row": "r",
    }
    assert (row["uid"], row["row"], row["original"]) == (reference.uid_of("http://a/1", "one"), 1, None)


def test_lists_without_a_header_line(tmp_path: Path) -> None:
    path = put(tmp_path, b"one\thttp://a/1\ntwo\thttp://a/2\n", "list.tsv")
    assert ingested(tmp_path / "data", path, columns=["text", "url"]).pairs == GOOD
    with pytest.raises(PairmillError, match="columns where there is no header line"):
        ingested(tmp_path / "other", path)


texts = st.text(st.sampled_from("aбé猫ßक ्\"',;|\n\r\t_\\/#\u0301\u00a0\u2028N1"), max_size=12)  # noqa: RUF001
urls = st.one_of(st.sampled_from(["http://a/1", "http://a/2"]), st.text(st.sampled_from("ab/:\"', \n\t%é"), max_size=6))
files = st.lists(st.lists(st.tuples(urls, texts), max_size=8), min_size=1, max_size=4)


def write_list(path: Path, rows: list[tuple[str, str]], line_end: str) -> None:
    if path.suffix == ".parquet":
        columns = zip(*rows, strict=True) if rows else ((), ())
        arrays = [pa.array(list(column), pa.string()) for column in columns]
        pq.write_table(pa.table(arrays, names=["url", "text"]), path, row_group_size=3)
        return
    text = io.StringIO(newline="")
    if ".jsonl" in path.name:
        text.writelines(json.dumps({"url": url, "text": text}) + line_end for url, text in rows)
    else:
        delimiter = "\t" if ".tsv" in path.name else ","
        writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator=line_end)
        writer.writerows([("url", "text"), *rows])
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files, st.integers(1, 5), st.sampled_from(["\n", "\r\n", "\r"]), st.randoms(use_true_random=False))
def test_any_lists_add_up_and_only_their_content_counts(
    tmp_path_factory: pytest.TempPathFactory, files: Any, shards: int, line_end: str, draw: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    paths = []
    for index, rows in enumerate(files):
        kind = draw.choice(["csv", "csv.gz", "tsv", "jsonl", "parquet"])
        paths.append(folder / f"{index}.{kind}")
        write_list(paths[-1], rows, "\n" if kind == "jsonl" else line_end)
    expected = reference.ingest(row for rows in files for row in rows)
    if not expected.pairs:
        with pytest.raises(PairmillError, match="no readable pair"):
            ingested(folder / "data", *paths, shards=shards)
        return
    result = ingested(folder / "data", *paths, shards=shards)
    assert result.rows_in == expected.rows_in
    assert len(result.quarantine) == expected.quarantined
    assert len(result.repeated) == expected.repeated
    assert {row["uid"]: (row["url"], row["text"]) for row in result.rows} == expected.pairs
    uids = [row["uid"] for row in result.rows]
    assert uids == sorted(set(uids))
    draw.shuffle(paths)
    with pytest.MonkeyPatch.context() as patch:  # neither do the sizes of what is in memory at once
        patch.setattr(list_rows, "BLOCK_ROWS", draw.randint(1, 4))
        patch.setattr(merging, "STRETCH_ROWS", draw.randint(1, 4))
        same = ingested(folder / "same", *paths, shards=shards)
        assert committed_bytes(folder / "same") == committed_bytes(folder / "data")
        other = ingested(folder / "other", *paths, shards=draw.randint(1, 5))
    assert other.rows == result.rows == same.rows
    assert sorted(map(str, other.repeated)) == sorted(map(str, result.repeated))


def test_shards_part_the_uids_in_order(tmp_path: Path) -> None:
    lines = "".join(f"http://a/{index},text {index}\n" for index in range(400))
    result = ingested(tmp_path / "data", put(tmp_path, f"url,text\n{lines}".encode()), shards=7)
    assert len(result.shards) == 7
    assert all(len(shard) > 20 for shard in result.shards)
    assert [row["uid"] for row in result.rows] == sorted(row["uid"] for row in result.rows)


def test_a_second_call_is_up_to_date_until_a_list_changes(tmp_path: Path) -> None:
    path = put(tmp_path, b"url,text\nhttp://a/1,one\n")
    other = put(tmp_path, b"url,text\nhttp://a/2,two\n", "other.csv")
    job = job_of(tmp_path / "data", [path, other])
    assert ingest.run(job) != UP_TO_DATE
    before = committed_bytes(tmp_path / "data")
    assert ingest.run(job) == UP_TO_DATE
    assert committed_bytes(tmp_path / "data") == before
    put(tmp_path, b"url,text\nhttp://a/1,one\nhttp://a/3,three\n")
    assert ingest.run(job) != UP_TO_DATE
    assert Ingested(tmp_path / "data").pairs == {*GOOD, ("http://a/3", "three")}


def test_a_removed_shard_is_made_again(tmp_path: Path) -> None:
    lines = "".join(f"http://a/{index},text {index}\n" for index in range(50))
    job = job_of(tmp_path / "data", [put(tmp_path, f"url,text\n{lines}".encode())], shards=3)
    ingest.run(job)
    before = committed_bytes(tmp_path / "data")
    (tmp_path / "data" / "pairs" / "00001.parquet").unlink()
    assert ingest.run(job) != UP_TO_DATE
    assert committed_bytes(tmp_path / "data") == before


def test_worker_processes_make_the_same_bytes(tmp_path: Path) -> None:
    first = put(tmp_path, b"url,text\nhttp://a/1,one\nhttp://a/2,two\nbad\n")
    second = put(tmp_path, b"url,text\nhttp://a/2,two\nhttp://a/3,three\n", "second.csv")
    ingest.run(job_of(tmp_path / "here", [first, second], shards=2))
    ingest.run(job_of(tmp_path / "there", [first, second], LocalEngine(2), shards=2))
    assert committed_bytes(tmp_path / "there") == committed_bytes(tmp_path / "here")


def test_a_pair_that_repeats_without_end_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_rows, "BLOCK_ROWS", 100)
    monkeypatch.setattr(merging, "STRETCH_ROWS", 50)
    monkeypatch.setattr(row_groups, "ROWS_PER_GROUP", 70)
    lines = b"http://a/1,one\n" * 1000 + b"http://a/2,two\n"
    result = ingested(tmp_path / "data", put(tmp_path, b"url,text\n" + lines))
    assert result.pairs == GOOD
    assert [row["row"] for row in result.repeated] == list(range(2, 1001))
    assert {row["uid"] for row in result.repeated} == {reference.uid_of("http://a/1", "one")}


def many_lists(folder: Path, rows: int) -> list[Path]:
    draw = random.Random(3)
    for index in range(4):
        lines = [f"http://a/{draw.randrange(rows)},text &amp; {draw.randrange(3)} ü\n" for _ in range(rows)]
        lines[:: rows // 7] = ['http://a/,"open\n'] * len(lines[:: rows // 7])
        put(folder, f"url,text\n{''.join(lines)}".encode(), f"{index}.csv")
    table = pa.table({"url": [f"http://a/{n}" for n in range(rows)], "text": ["from parquet"] * rows})
    pq.write_table(table, folder / "last.parquet", row_group_size=1000)
    return sorted(folder.iterdir())


def kill_and_compare(tmp_path: Path, kills: int, rows: int) -> None:
    inputs = [str(path) for path in many_lists(tmp_path / "lists", rows)]
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'name = "r"\n[ingest]\ninputs = {inputs}\nshards = 5\n')
    call = ("ingest", "--recipe", recipe, "--workers", "2", "--data")
    began = time.monotonic()
    assert finish(start(*call, tmp_path / "undisturbed", cwd=tmp_path))[0] == 0
    seconds = time.monotonic() - began
    draw = random.Random(kills)
    for _ in range(kills):
        process = start(*call, tmp_path / "data", cwd=tmp_path)
        time.sleep(draw.uniform(0.5, 1.0) * seconds)
        kill_hard(process)
    assert finish(start(*call, tmp_path / "data", cwd=tmp_path))[0] == 0
    assert committed_bytes(tmp_path / "data") == committed_bytes(tmp_path / "undisturbed")
    assert not list((tmp_path / "data" / ".staging").iterdir())


def test_killed_at_random_moments_the_same_bytes_are_there_in_the_end(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, kills=2, rows=2000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_30_times_the_same_bytes_are_there_in_the_end(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, kills=30, rows=60_000)


PEAK = """
import resource, sys
from pathlib import Path
from test_ingest import ingest, job_of
print(ingest.run(job_of(Path(sys.argv[1]), [Path(sys.argv[2])])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_list(tmp_path: Path, kind: str) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.{kind}"
        if kind == "parquet":
            urls = pa.array([f"http://example.org/{n}" for n in range(rows)])
            pq.write_table(pa.table({"url": urls, "text": urls}), path, row_group_size=122_880)
        else:
            with open(path, "w") as file:
                file.write("url,text\n" if kind == "csv" else "")
                line = "http://example.org/{0},http://example.org/{0}\n"
                line = line if kind == "csv" else '{{"url": "http://example.org/{0}", "text": "text {0}"}}\n'
                file.writelines(line.format(n) for n in range(rows))
        command = [sys.executable, "-c", PEAK, str(tmp_path / f"data-{rows}"), str(path)]
        return int(
            subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent
            ).stdout.split()[-1]
        )

    assert peak(4_000_000) < peak(1_000_000) + 150
