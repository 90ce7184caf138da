"""The lists' formats: every file system, compression and fault, row by row."""

import contextlib
import csv
import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PairmillError
from pipeline.lists import delimited, files
from pipeline.lists import rows as list_rows
from pipeline.lists.files import Part, parts_of
from pipeline.lists.reading import blocks
from pipeline.lists.rows import BAD_JSON, NOT_UTF8, ROW_TOO_LONG, STRAY_QUOTE, TOO_FEW, TOO_MANY, UNCLOSED_QUOTE

HEAD = b"url,text\n"
ROWS = [{"url": f"http://a/{n}", "text": f"text {n}"} for n in range(1, 4)]


class Read:
    """Everything that a file holds, read back."""

    def __init__(self, path: str, header: tuple[str, ...] = ()) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.bad: dict[int, str] = {}
        self.content: dict[int, str] = {}
        self.blocks = 0
        for part in parts_of((path,)):
            for block in blocks(part, ("url", "text"), header):
                self.blocks += 1
                table = pa.table(block.columns).to_pylist() if block.columns else []
                self.rows |= dict(zip(block.rows.tolist(), table, strict=True))
                self.bad |= {bad.row: bad.reason for bad in block.bad}
                self.content |= {bad.row: bad.content for bad in block.bad}
        assert not self.rows.keys() & self.bad.keys()
        assert sorted(self.rows.keys() | self.bad.keys()) == list(range(1, 1 + len(self.rows) + len(self.bad)))


def read(folder: Path, content: bytes, name: str = "list.csv", **more: Any) -> Read:
    (folder / name).write_bytes(content)
    return Read(str(folder / name), **more)


def as_csv(delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["url", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def as_parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


CONTENTS: dict[str, Callable[[], bytes]] = {
    "csv": as_csv,
    "tsv": lambda: as_csv("\t"),
    "jsonl": as_jsonl,
    "ndjson": as_jsonl,
    "parquet": as_parquet,
}


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_format_says_the_same(tmp_path: Path, kind: str, compression: str) -> None:
    content = COMPRESSORS[compression](CONTENTS[kind]())
    if kind == "parquet" and compression:
        with pytest.raises(PairmillError, match=r"neither .* nor \.parquet"):
            read(tmp_path, content, f"list.{kind}{compression}")
        return
    result = read(
        tmp_path, content, f"LIST.{kind}{compression}".upper() if kind == "csv" else f"list.{kind}{compression}"
    )
    assert (list(result.rows.values()), result.bad) == (ROWS, {})


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_compressed_list_of_several_members_is_read_whole_and_one_cut_off_is_named(
    tmp_path: Path, compression: str
) -> None:
    compress = COMPRESSORS[compression]
    content = as_csv()
    whole = compress(content[:20]) + compress(content[20:])
    assert list(read(tmp_path, whole, f"list.csv{compression}").rows.values()) == ROWS
    for cut in (whole[:-6], whole[:7], b"no such thing"):
        with pytest.raises(PairmillError, match=r"list\.csv"):
            read(tmp_path, cut, f"list.csv{compression}")


@pytest.mark.parametrize(
    ("content", "rows", "bad"),
    [
        (b'http://a/1,"one\n\ntwo"\nx\nhttp://a/3,three\n', {1: "one\n\ntwo", 3: "three"}, {2: TOO_FEW}),
        (b"http://a/1,one\r\nhttp://a/2,two\nhttp://a/3,three\r", {1: "one", 2: "two", 3: "three"}, {}),
        (b"\n\r\nhttp://a/1,one\n\n\nx,y,z\nhttp://a/3,three", {1: "one", 3: "three"}, {2: TOO_MANY}),
        (b'http://a/1,"one\nhttp://a/2,two\nhttp://a/3,three\n', {2: "two", 3: "three"}, {1: UNCLOSED_QUOTE}),
        (b'http://a/1,"one\nhttp://a/2,"two"\nhttp://a/3,three\n', {2: "two", 3: "three"}, {1: STRAY_QUOTE}),
        (b'http://a/1,"one" two\nhttp://a/2,t"w"o\n', {2: 't"w"o'}, {1: STRAY_QUOTE}),
        (b'http://a/1,"o\xff\nne"\nhttp://a/2,two\n', {2: "two"}, {1: NOT_UTF8}),
        (b'http://a/1,"on\xffe\nhttp://a/2,two\n', {2: "two"}, {1: NOT_UTF8}),
        (b'http://a/1,"one\nhttp://a/2,t\xffwo\nhttp://a/3,three', {3: "three"}, {1: UNCLOSED_QUOTE, 2: NOT_UTF8}),
        (b"http://a/1,\xed\xa0\x80\nhttp://a/2,two", {2: "two"}, {1: NOT_UTF8}),
        (b'http://a/1,\nhttp://a/2,""\n', {1: None, 2: None}, {}),
        (b"http://a/1,on\x00e\n", {1: "on\x00e"}, {}),
    ],
)
def test_rows_of_csv_keep_their_numbers(
    tmp_path: Path, content: bytes, rows: dict[int, str | None], bad: dict[int, str]
) -> None:
    result = read(tmp_path, HEAD + content)
    assert ({row: value["text"] for row, value in result.rows.items()}, result.bad) == (rows, bad)


def test_what_is_refused_is_shown_as_it_stood(tmp_path: Path) -> None:
    result = read(tmp_path, HEAD + b"http://a/1,caf\xe9,more\nx\n" + b"y" * 9000 + b"\n")
    assert result.content == {1: "http://a/1,caf\ufffd,more\n", 2: "x\n", 3: "y" * 500}


def test_a_quote_in_tsv_is_a_quote_unless_it_closes_its_field(tmp_path: Path) -> None:
    content = b'url\ttext\nhttp://a/1\t"big" dog\nhttp://a/2\t"a\tb"\nhttp://a/3\t"open\n'
    result = read(tmp_path, content, "list.tsv")
    assert [row["text"] for row in result.rows.values()] == ['"big" dog', "a\tb", '"open']
    assert result.bad == {}


def test_lists_without_a_header_line_have_their_columns_named(tmp_path: Path) -> None:
    result = read(tmp_path, "\ufefftext 1\thttp://a/1\ntext 2\thttp://a/2\n".encode(), "l.tsv", header=("text", "url"))
    assert list(result.rows.values()) == ROWS[:2]


def slow_csv(data: bytes) -> tuple[dict[int, list[str]], dict[int, str]]:
    """RFC 4180, letter by letter; what is no record is refused with its first line, and reading goes on behind that."""

    def line_end(at: int) -> int:
        while at < len(data):
            if data[at : at + 2] == b"\r\n":
                return at + 2
            if data[at] in b"\r\n":
                return at + 1
            at += 1
        return at

    rows: dict[int, list[str]] = {}
    bad: dict[int, str] = {}
    at, row = 0, 0
    while at < len(data):
        if data[at] in b"\r\n":
            at = line_end(at)
            continue
        row += 1
        begin, fields, fault = at, [b""], ""
        while at < len(data) and data[at] not in b"\r\n":
            if data[at : at + 1] == b",":
                fields.append(b"")
                at += 1
            if data[at : at + 1] == b'"':
                at += 1
                while True:
                    if at >= len(data):
                        fault = UNCLOSED_QUOTE
                        break
                    if data[at : at + 2] == b'""':
                        fields[-1] += b'"'
                        at += 2
                    elif data[at : at + 1] == b'"':
                        at += 1
                        break
                    else:
                        fields[-1] += data[at : at + 1]
                        at += 1
                if not fault and at < len(data) and data[at] not in b",\r\n":
                    fault = STRAY_QUOTE
                if fault:
                    break
            else:
                while at < len(data) and data[at] not in b",\r\n":
                    fields[-1] += data[at : at + 1]
                    at += 1
        at = line_end(begin if fault else at)
        try:
            data[begin:at].decode()
        except UnicodeDecodeError:
            fault = NOT_UTF8
        if fault or len(fields) != 2:
            bad[row] = fault or (TOO_FEW if len(fields) < 2 else TOO_MANY)
        else:
            rows[row] = [field.decode() for field in fields]
    return rows, bad


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\xef\xbb\xbf"]), max_size=12).map(b"".join), st.integers(1, 5))
def test_lines_are_those_of_the_whole_however_they_come(data: bytes, read_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_rows, "READ_BYTES", read_bytes)
        lines = list(list_rows.physical_lines(io.BytesIO(data)))
    assert lines == data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)


ATOMS = st.sampled_from(
    [b"a", b"b", b",", b",", b'"', b'"', b'""', b"\n", b"\r\n", b"\r", b"\xff", "é".encode(), b"\x00"]
)


@settings(max_examples=800, deadline=None)
@given(st.lists(ATOMS, max_size=30).map(b"".join), st.integers(1, 9), st.integers(1, 5))
def test_any_bytes_read_as_csv_as_a_slow_reader_reads_them(data: bytes, read_bytes: int, block_rows: int) -> None:
    file = io.BytesIO(HEAD + data)
    part = Part("list.csv", None, "")
    rows: dict[int, list[str]] = {}
    bad: dict[int, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_rows, "READ_BYTES", read_bytes)
        patch.setattr(list_rows, "BLOCK_ROWS", block_rows)
        for block in delimited.read(part, file, ",", ()):
            assert len(block.rows) + len(block.bad) <= block_rows
            columns = [[value or "" for value in column.to_pylist()] for column in block.columns.values()]
            rows |= {row: list(fields) for row, *fields in zip(block.rows.tolist(), *columns, strict=True)}
            bad |= {row.row: row.reason for row in block.bad}
    assert (rows, bad) == slow_csv(data)


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 1 << 20])
def test_rows_that_are_too_long_cost_themselves_only(
    tmp_path: Path, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_rows, "READ_BYTES", read_bytes)
    monkeypatch.setattr(list_rows, "MAX_ROW_BYTES", 60)
    long = [b"x" * 200, b"http://a/1," + b"x" * 80, b'http://a/1,"' + b"x" * 80 + b'"', b'"' + b"x" * 61]
    for end in (b"\n", b"\r\n", b"\r"):
        rows = end.join([b"http://a/0,one", *(row for bad in long for row in (bad, b"http://a/0,one"))]) + end
        result = read(tmp_path, HEAD + rows)
        assert set(result.bad.values()) == {ROW_TOO_LONG}
        assert sorted(result.bad) == [2, 4, 6, 8]
    lines = b'http://a/1,"' + b"y\n" * 40 + b'"\nhttp://a/2,two\n'  # of many lines: refused line by line
    result = read(tmp_path, HEAD + lines)
    assert list(result.rows.values()) == [{"url": "http://a/2", "text": "two"}]
    result = read(tmp_path, as_jsonl() + b'{"url": "' + b"x" * 100 + b'"}\n' + as_jsonl(), "list.jsonl")
    assert (len(result.rows), result.bad) == (6, {4: ROW_TOO_LONG})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", BAD_JSON),
        (b'{"url": "http://a/1"} {}', BAD_JSON),
        (b"[1]", BAD_JSON),
        (b'"text"', BAD_JSON),
        (b"null", BAD_JSON),
        (b"[" * 100_000, BAD_JSON),
        (b'{"url": ' + b"9" * 5000 + b"}", BAD_JSON),
        *((b'{"url": ' + b"[" * deep + b"]" * deep + b"}", BAD_JSON) for deep in (1100, 20_000)),
        (b'{"text": "\xff"}', NOT_UTF8),
        (b"{" + b", ".join(b'"k%d": 1' % n for n in range(2000)) + b"}", TOO_MANY),
    ],
)
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: bytes, reason: str) -> None:
    result = read(tmp_path, b"\n" + as_jsonl() + line + b"\r\n\n  \n" + as_jsonl(), "list.jsonl")
    assert ([row["text"] for row in result.rows.values()], result.bad) == ([r["text"] for r in ROWS] * 2, {4: reason})


def test_values_in_json_keep_their_types_and_mixed_ones_become_text(tmp_path: Path) -> None:
    records = [
        {"url": "u", "text": ["a", "b"], "n": 1, "x": 0.5, "b": True, "mixed": 1, "o": {"k": [1]}, "l": [1, 2]},
        {"URL": "u", "text": ["c"], "n": None, "x": 2, "mixed": "one", "o": None, "N": 7, "big": 2**70, "": 1},
        {"text": [], "x": float("nan"), "mixed": [1], "half": "cut \ud83d", "l": []},
    ]
    result = read(tmp_path, "".join(json.dumps(record) + "\n" for record in records).encode(), "list.jsonl")
    columns = {name: [row[name] for row in result.rows.values()] for name in result.rows[1]}
    assert columns == {
        "url": ["u", "u", None],
        "text": [["a", "b"], ["c"], []],
        "n": [1, 7, None],
        "x": [0.5, 2.0, None],
        "b": [True, None, None],
        "mixed": ["1", "one", "[1]"],
        "o": ['{"k": [1]}', None, None],
        "l": [[1, 2], None, []],
        "big": [None, str(2**70), None],
        "": [None, 1, None],
        "half": [None, None, "cut \ufffd"],
    }


def test_a_key_that_no_object_has_is_a_mistake_in_the_recipe_and_not_in_the_list(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_bytes(b'{"link": "http://a/1", "text": "one"}\n')
    (block,) = blocks(Part(str(tmp_path / "list.jsonl"), 1, ""), ("url", "text"))
    assert list(block.columns) == ["text", "link"]


def test_parquet_of_every_kind_of_text(tmp_path: Path) -> None:
    strings = pa.array(["http://a/1", None, "http://a/3"])
    for text in (
        strings,
        strings.cast(pa.large_string()),
        strings.cast(pa.string_view()),
        strings.dictionary_encode(),
        strings.cast(pa.binary()),
    ):
        pq.write_table(pa.table({"url": strings, "text": text}), tmp_path / "list.parquet")
        result = Read(str(tmp_path / "list.parquet"))
        assert [row["text"] for row in result.rows.values()] == strings.to_pylist()


@pytest.mark.parametrize("deep", [*range(880, 1010, 3)])
def test_no_depth_of_json_breaks_the_reading(tmp_path: Path, deep: int) -> None:
    line = b'{"url": "http://a/1", "text": "one", "x": ' + b"[" * deep + b"]" * deep + b"}\n"
    result = read(tmp_path, line + as_jsonl(), "list.jsonl")
    assert result.bad in ({}, {1: BAD_JSON})
    assert len(result.rows) + len(result.bad) == 4


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_texts_that_are_not_utf8_are_refused_by_row(tmp_path: Path, nested: bool) -> None:
    raw = pa.array([b"fine", b"bro\xffken", None, b"\xed\xa0\x80", b"good"], pa.binary())
    text = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    other = pa.ListArray.from_arrays(pa.array(range(6), pa.int32()), text) if nested else text
    table = pa.table({"url": [f"http://a/{n}" for n in range(5)], "text": ["t"] * 5, "other": other})
    pq.write_table(table, tmp_path / "list.parquet")
    result = Read(str(tmp_path / "list.parquet"))
    assert (list(result.rows), result.bad) == ([1, 3, 5], {2: NOT_UTF8, 4: NOT_UTF8})
    assert result.content[2].startswith("http://a/1 | t")


def test_a_large_parquet_list_is_parted_by_its_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SPLIT_BYTES", 1000)
    monkeypatch.setattr(files, "ROWS_PER_PART", 25)
    urls = [f"http://a/{n}" for n in range(1, 98)]
    pq.write_table(pa.table({"url": urls, "text": urls}), tmp_path / "list.parquet", row_group_size=10)
    parts = parts_of((str(tmp_path / "list.parquet"),))
    assert [(part.first_group, part.groups, part.first_row) for part in parts] == [
        (0, 3, 0),
        (3, 3, 30),
        (6, 3, 60),
        (9, 1, 90),
    ]
    rows = Read(str(tmp_path / "list.parquet")).rows
    assert {row: value["url"] for row, value in rows.items()} == dict(enumerate(urls, 1))


def test_wide_rows_of_parquet_come_fewer_at_a_time(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(30_000)
    table = pa.table({"url": ["u"] * 4000, "text": ["t"] * 4000, "page": [noise[n:] for n in range(4000)]})
    pq.write_table(table, tmp_path / "list.parquet", compression="none", use_dictionary=False)
    sizes = [len(b.rows) for b in blocks(Part(str(tmp_path / "list.parquet"), 1, ""), ("url", "text"))]
    assert sum(sizes) == 4000
    assert max(sizes) * 30_000 < 1.5 * list_rows.BLOCK_BYTES


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.csv", ["1.csv", "[2].csv"]),
        ("**/*.csv", ["1.csv", "[2].csv", "deep/er/3.csv"]),
        ("?.csv", ["1.csv"]),
        ("[0-9].csv", ["1.csv"]),
        ("[2].csv", ["[2].csv"]),
        ("deep/**", ["deep/er/3.csv"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, found: list[str]) -> None:
    for name in ("1.csv", "[2].csv", "deep/er/3.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(HEAD)
    for prefix in ("", "file://"):
        parts = parts_of((f"{prefix}{tmp_path}/{pattern}",))
        assert [part.path.removeprefix(f"{prefix}{tmp_path}/") for part in parts] == found


def test_the_order_of_inputs_does_not_count_and_a_rewritten_file_is_another(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_bytes(HEAD)
    names = tuple(str(tmp_path / f"{name}.csv") for name in "ab")
    before = parts_of(names)
    assert parts_of(names[::-1]) == before
    (tmp_path / "a.csv").write_bytes(HEAD)
    assert parts_of(names)[0] != before[0]
    assert parts_of(names)[1] == before[1]


@contextlib.contextmanager
def serving(files: dict[str, bytes], ranges: bool = True, cut: bool = False) -> Iterator[str]:
    """An HTTP server of these files, which also speaks as much of S3 as a reader needs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            name, query = unquote(address.path).strip("/"), parse_qs(address.query)
            if "list-type" in query:
                self.listed(name, query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
            elif name not in files:
                self.answer(404, b"")
            else:
                self.sent(files[name])

        def sent(self, content: bytes) -> None:
            wanted = self.headers.get("Range", "")
            if ranges and wanted.startswith("bytes="):
                first, last = wanted.removeprefix("bytes=").split("-")
                begin, end = int(first), min(int(last or len(content)), len(content) - 1)
                headers = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
                self.answer(206, content[begin : end + 1], **headers)
            else:
                self.answer(200, content)

        def listed(self, bucket: str, prefix: str, delimiter: str) -> None:
            keys = [name.partition("/")[2] for name in files if name.startswith(f"{bucket}/{prefix}")]
            folders = {prefix + key[len(prefix) :].partition("/")[0] + "/" for key in keys if "/" in key[len(prefix) :]}
            folders = folders if delimiter else set()
            shown = [key for key in keys if not delimiter or "/" not in key[len(prefix) :]]
            entries = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(files[f'{bucket}/{key}'])}</Size><ETag>e</ETag>"
                "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
                for key in shown
            ) + "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
            self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            if ranges:
                self.send_header("Accept-Ranges", "bytes")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)
                if cut:
                    self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["list.csv", "list.jsonl.gz", "list.tsv.zst", "list.parquet"])
def test_lists_over_http(name: str, ranges: bool) -> None:
    kind, _, compression = name.removeprefix("list.").partition(".")
    content = COMPRESSORS[f".{compression}" if compression else ""](CONTENTS[kind]())
    with serving({f"lists/{name}": content}, ranges) as base:
        for query in ("", "?signed=a/b.c"):
            assert list(Read(f"{base}/lists/{name}{query}").rows.values()) == ROWS


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_list_that_breaks_off_on_its_way_is_named(name: str) -> None:
    content = CONTENTS[name.rpartition(".")[2]]()
    with serving({name: content}, ranges=False, cut=True) as base:
        with pytest.raises(PairmillError, match=name):
            Read(f"{base}/{name}")


def test_a_list_that_is_not_on_the_server_is_named() -> None:
    with serving({}) as base:
        with pytest.raises(PairmillError, match=r"cannot read the list http.*absent\.csv"):
            Read(f"{base}/absent.csv")


def test_lists_in_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    names = {f"bucket/lists/{quote(kind)} 1.{kind}": make() for kind, make in CONTENTS.items()}
    with serving(names | {"bucket/other.csv": b"no list"}) as base:
        monkeypatch.setenv("AWS_ENDPOINT_URL", base)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        assert len(parts_of(("s3://bucket/lists/*",))) == len(names)
        for name in names:
            assert list(Read(f"s3://{name}").rows.values()) == ROWS
        with pytest.raises(PairmillError, match=r"s3://bucket/absent\.csv"):
            Read("s3://bucket/absent.csv")
