"""The lists' own columns as every export has them: types, names, where the lists lay, and what they may weigh."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kept_web import Web
from reading_back import READERS
from test_exports import exported

from pipeline.exports.metadata import Field, fields_of_pairs, public_names, safe_names
from pipeline.exports.reading import _rows, _strict
from pipeline.exports.staging import ROWS_PER_GROUP

LARGE = 2**127 - 1


def gone_out(select: str, *scores: str) -> dict[Field, Any]:
    """The metadata of the one pair that `pairs` has."""
    with duckdb.connect() as connection:
        connection.execute(f"SET TimeZone = 'UTC'; CREATE VIEW pairs AS SELECT {select}")
        found = fields_of_pairs(connection, scores)
        values = connection.execute(f"SELECT {', '.join(found.values())} FROM pairs").fetchall()[0]
    return dict(zip(found, values, strict=True))


@pytest.mark.parametrize(
    ("value", "kind", "lists", "expected"),
    [
        ("'a\n<script>'", "text", 0, "a\n<script>"),
        ("NULL::VARCHAR", "text", 0, None),
        ("true", "boolean", 0, True),
        ("(-128)::TINYINT", "whole", 0, -128),
        ("4294967295::UINTEGER", "whole", 0, 2**32 - 1),
        ("9223372036854775807", "whole", 0, 2**63 - 1),
        ("18446744073709551615::UBIGINT", "text", 0, str(2**64 - 1)),
        (f"{LARGE}::HUGEINT", "text", 0, str(LARGE)),
        ("1.50::DECIMAL(9, 2)", "text", 0, "1.50"),
        ("0.5::FLOAT", "number", 0, 0.5),
        ("'nan'::DOUBLE", "number", 0, None),
        ("'-inf'::FLOAT", "number", 0, None),
        ("DATE '2021-02-03'", "text", 0, "2021-02-03"),
        ("TIME '04:05:06.5'", "text", 0, "04:05:06.5"),
        ("TIMESTAMP '2021-02-03 04:05:06'", "text", 0, "2021-02-03T04:05:06"),
        ("TIMESTAMP_NS '2021-02-03 04:05:06.123456789'", "text", 0, "2021-02-03T04:05:06.123456789"),
        ("TIMESTAMPTZ '2021-02-03 04:05:06.5+05:30'", "text", 0, "2021-02-02T22:35:06.5Z"),
        ("TIMESTAMPTZ 'infinity'", "text", 0, "infinity"),
        ("TIMESTAMP '0044-03-15 (BC) 12:00:00'", "text", 0, "0044-03-15 (BC) 12:00:00"),
        ("TIMESTAMP '290000-01-01 00:00:00'", "text", 0, "290000-01-01 00:00:00"),
        ("INTERVAL 36 HOUR", "text", 0, "36:00:00"),
        ("'6F9619FF-8B86-D011-B42D-00C04FC964FF'::UUID", "text", 0, "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        ("'by'::ENUM('by', 'cc0')", "text", 0, "by"),
        (r"'\xC3\xA9'::BLOB", "text", 0, "é"),
        (r"'\xC3<'::BLOB", "text", 0, r"\xC3<"),
        ("['a', NULL]", "text", 1, ["a", None]),
        ("[]::DATE[]", "text", 1, []),
        ("NULL::DATE[]", "text", 1, None),
        ("[[TIMESTAMP '2021-02-03 04:05:06'], NULL]", "text", 2, [["2021-02-03T04:05:06"], None]),
        ("[0.5, 'nan'::FLOAT]::FLOAT[2]", "number", 1, [0.5, None]),
        ("[[[1]]]", "whole", 3, [[[1]]]),
        ("{'a': DATE '2021-02-03', 'b': [1, NULL]}", "json", 0, '{"a":"2021-02-03","b":[1,null]}'),
        ("[{'a': chr(0)}, NULL]", "json", 0, r'[{"a":"\u0000"},null]'),
        ("NULL::STRUCT(a INTEGER)", "json", 0, None),
        ("MAP {'$oid': 1}", "json", 0, '{"$oid":1}'),
    ],
)
def test_a_value_by_its_type(value: str, kind: str, lists: int, expected: Any) -> None:
    ((field, found),) = gone_out(f"{value} AS own").items()
    assert (field.name, field.kind, field.lists, found) == ("own", kind, lists, expected)


def test_json_that_is_none_in_json() -> None:
    ((_, found),) = gone_out("{'nan': 'nan'::DOUBLE, 'all': ['inf'::FLOAT, -1], 'word': 'NaN'} AS own").items()
    assert math.isnan(json.loads(found)["nan"])  # as DuckDB has it
    assert json.loads(_strict(found) or "") == {"nan": None, "all": [None, -1.0], "word": "NaN"}
    assert _strict(None) is None


def test_what_a_caption_has_itself_and_what_is_a_score_is_left_out() -> None:
    found = gone_out("'u' AS uid, 'l' AS url, 't' AS text, NULL AS original, 'o' AS \"b\"\"\", 1 AS width", "width")
    assert {field.name: value for field, value in found.items()} == {"original": "t", 'b"': "o"}


@given(st.lists(st.text(st.sampled_from("aAfileFILE_names\0typ"), min_size=1, max_size=12), unique_by=str.lower))
@example(["_type", "_TYPE_", "x_file_name", "x_file_name_", "file_names", "a\0", "A_"])
def test_names_stay_apart_and_command_nothing(names: list[str]) -> None:
    found = safe_names(names)
    assert list(found) == names
    assert len({safe.lower() for safe in found.values()}) == len(names)
    for name, safe in found.items():
        assert safe.rstrip("_") == name.replace("\0", "_").rstrip("_")
        assert "\0" not in safe
        assert safe != "_type"
        assert not safe.endswith(("file_name", "file_names")) or safe == name
        assert not safe.endswith(("_file_name", "_file_names"))
        assert safe not in ("file_name", "file_names")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        (["/home/somebody/list.csv"], ["list.csv"]),
        (["list.csv"], ["list.csv"]),
        (["/lists/a/0.parquet", "/lists/ab/0.parquet"], ["a/0.parquet", "ab/0.parquet"]),
        (["/lists/0.csv", "lists/1.csv"], ["/lists/0.csv", "lists/1.csv"]),
        (["s3://bucket/x/0.csv", "s3://bucket/x/1.csv"], ["0.csv", "1.csv"]),
        (["https://me:secret@host/a.csv?signature=/x/y#z"], ["a.csv"]),
        (
            ["https://me:secret@one/a.csv?key=k", "ftp://me:s@two/b.csv", "https://h?key=k"],
            ["one/a.csv", "two/b.csv", "h"],
        ),
    ],
)
def test_where_the_lists_lay_is_not_published(files: list[str], expected: list[str]) -> None:
    found = public_names(files)
    assert [found[file] for file in files] == expected


@pytest.fixture
def _in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_in_tokyo")
def test_an_instant_is_the_same_wherever_it_is_exported(web: Web, tmp_path: Path) -> None:
    with web.dataset.connect() as connection:
        assert connection.execute("SELECT current_setting('TimeZone')").fetchone() == ("Asia/Tokyo",)
    found = READERS["jsonl"](exported(web, "jsonl", tmp_path / "out"))
    for key, image in web.images.items():
        instants = {uid: own["uploaded"] for uid, own in image.metadata.items()}
        assert {uid: own["uploaded"] for uid, own in found[key].metadata.items()} == instants


def test_a_worker_holds_few_rows_at_once(tmp_path: Path) -> None:
    """Of a list whose own column has 100 kB a row: what is held must not grow with the rows of a shard."""
    rows, long = 1500, "a long description " * 5000
    shards = ["00000"] * 10 + ["00001"] * (rows - 20) + ["00002"] * 10
    staged = pa.table({"shard": shards, "key": [f"{at:09d}" for at in range(rows)], "metadata:own": [long] * rows})
    pq.write_table(staged, tmp_path / "pairs.parquet", row_group_size=ROWS_PER_GROUP)
    del staged
    before, most, keys = pa.total_allocated_bytes(), 0, []
    for row in _rows(tmp_path / "pairs.parquet", "00001"):
        assert row["metadata:own"] == long
        keys.append(row["key"])
        most = max(most, pa.total_allocated_bytes() - before)
    assert keys == [f"{at:09d}" for at in range(10, rows - 10)]
    assert most < 40e6 < rows * len(long) / 3
