"""Stage ingest: what a list may hold, and what becomes of each row."""

import csv
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from command import committed_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import ingest
from pipeline.engine import LocalEngine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset


class Here:
    """An engine without processes: what is tested here is the stage."""

    workers = 1

    def map(self, function: Any, tasks: Any, label: str) -> Any:
        return map(function, list(tasks))


def job_of(data: Path, inputs: list[Path], engine: Any = None, **section: object) -> Job:
    recipe = Recipe.model_validate({"name": "t", "ingest": {"inputs": [str(path) for path in inputs], **section}})
    return Job("ingest", recipe, Dataset(data), engine or Here())


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
    ],
    ids=["lf", "no-end", "crlf", "bom", "quoted", "swapped", "empty-lines", "blanks", "trailing-comma", "pandas-index"],
)
def test_forms_of_csv_that_say_the_same(tmp_path: Path, content: bytes) -> None:
    result = read(tmp_path, content)
    assert (result.pairs, result.reasons) == (GOOD, [])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"http://a/3,\xff\xfe", "invalid encoding"),
        (b"http://a/3", "missing columns"),
        (b"http://a/3,x,y", "too many columns"),
        (b'http://a/3,"x"y', "unquoted value"),
        (b",x", "no url"),
        (b"http://a/3,", "no text"),
        (b'http://a/3,"  \t "', "no text"),
        ("http://a/3,\u00a0\u2003".encode(), "no text"),
        (b"http://a/3 4,x", "blank or control character in the url"),
        (b'"http://a/3\n4",x', "blank or control character in the url"),
        (b"http://a/3\x004,x", "blank or control character in the url"),
        (b"http://a/3," + b"x" * 10_001, "text over 10000 characters"),
        (b"http://a/3," + b"x" * 10_000_000, "text over 10000 characters"),
        (b"http://a/3," + b"x" * 30_000_000, "line size over maximum"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason_and_the_others_stay(tmp_path: Path, bad: bytes, reason: str) -> None:
    result = read(tmp_path, b"url,text\nhttp://a/1,one\n" + bad + b"\nhttp://a/2,two\n")
    assert (result.pairs, result.reasons) == (GOOD, [reason])
    (row,) = result.quarantine
    assert (row["file"].endswith("list.csv"), row["row"]) == (True, 2)
    assert len(row["content"] or "") <= 500


def test_an_unterminated_quote_takes_the_rest_but_not_what_was_before(tmp_path: Path) -> None:
    result = read(tmp_path, b'url,text\nhttp://a/1,one\nhttp://a/2,"two\nhttp://a/3,three\n')
    assert result.pairs == {("http://a/1", "one")}
    assert result.reasons == ["unquoted value"]


def test_a_quoted_newline_is_a_blank(tmp_path: Path) -> None:
    result = read(tmp_path, b'url,text\nhttp://a/1,"one\ntwo\r\nthree"\n')
    assert result.pairs == {("http://a/1", "one two three")}


def test_text_of_ten_thousand_characters_is_still_a_text(tmp_path: Path) -> None:
    assert read(tmp_path, "url,text\nhttp://a/1,{}\n".format("ä" * 10_000).encode()).reasons == []


def test_a_nul_in_a_text_does_no_harm(tmp_path: Path) -> None:
    assert read(tmp_path, b"url,text\nhttp://a/1,on\0e\n").pairs == {("http://a/1", "on\0e")}


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
        (b"url,text,uid\na,b,c\n", "uid"),
        (b"url,text\rhttp://a/1,one\rhttp://a/2,two\r", "line"),
        (b"url,text\nhttp://a/1,one\r\nhttp://a/2,two\n", "line ends"),
        (b"url,text\r\nhttp://a/1,one\nhttp://a/2,two\n", "line ends"),
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


def test_a_compressed_list_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(PairmillError, match=r"neither \.csv nor \.parquet"):
        ingested(tmp_path / "data", put(tmp_path, gzip.compress(b"url,text\na,b\n"), "list.csv.gz"))


def test_urls_and_texts_are_normalised(tmp_path: Path) -> None:
    result = read(
        tmp_path, " \ufeff".strip(" ").encode() + "url,text\n\thttp://a/1 ,\u2003e\u0301t\u00a0\t e \n".encode()
    )
    assert result.pairs == {("http://a/1", "\u00e9t e")}


texts = st.text(st.sampled_from("aбé猫ßक ्\"',;|\n\r\t_\\/#\u0301\u00a0\u2028N1"), max_size=12)  # noqa: RUF001
urls = st.one_of(st.sampled_from(["http://a/1", "http://a/2"]), st.text(st.sampled_from("ab/:\"', \n\t%é"), max_size=6))
files = st.lists(st.lists(st.tuples(urls, texts), max_size=8), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files, st.integers(1, 5), st.booleans(), st.randoms(use_true_random=False))
def test_any_lists_add_up_and_only_their_content_counts(
    tmp_path_factory: pytest.TempPathFactory, files: Any, shards: int, crlf: bool, draw: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    paths = []
    for index, rows in enumerate(files):
        path = folder / f"{index}.{'csv' if index % 2 == 0 else 'parquet'}"
        if path.suffix == ".csv":
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n" if crlf else "\n")
                writer.writerows([("url", "text"), *rows])
        else:
            columns = zip(*rows, strict=True) if rows else ((), ())
            arrays = [pa.array(list(column), pa.string()) for column in columns]
            pq.write_table(pa.table(arrays, names=["url", "text"]), path)
        paths.append(path)
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
    other = ingested(folder / "other", *paths, shards=draw.randint(1, 5))
    assert other.rows == result.rows
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
