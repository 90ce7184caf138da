"""Texts from files: every format, and what is wrong with them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PairmillError
from pipeline.lists.rows import MAX_ROW_BYTES
from trainers.data import text_files
from trainers.data.text_files import Texts, read_texts, states_of

WORDS = ["a red cat", "zwei H\u00e4user", "three &amp; four", "\u732b", "five  blanks "]
CLEAN = ["a red cat", "zwei H\u00e4user", "three & four", "\u732b", "five blanks"]
TURNED = [text[::-1].strip() for text in CLEAN]


def read(*files: Path | str, columns: tuple[str, ...] = ("text",)) -> Texts:
    return read_texts([str(file) for file in files], columns, 0.0)


def found(texts: Texts) -> list[tuple[str, ...]]:
    return list(zip(*(column.to_pylist() for column in texts.columns), strict=True))


def write(folder: Path, kind: str) -> Path:
    path = folder / f"corpus.{kind}"
    records = [{"text": text, "translation": turned, "n": 1} for text, turned in zip(WORDS, TURNED, strict=True)]
    lines = "\n".join(WORDS) if "txt" in kind else "\n".join(json.dumps(record) for record in records)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind == "tsv":
        rows = ["text\ttranslation", *(f"{text}\t{turned}" for text, turned in zip(WORDS, TURNED, strict=True))]
        path.write_text("\n".join(rows))
    elif kind.endswith("gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "jsonl.gz", "tsv", "parquet"])
def test_every_format_holds_the_same_texts(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    texts = read(path)
    assert texts.columns[0].to_pylist() == CLEAN
    assert texts.uids.tolist() == [f"{path.name}:{row}".encode() for row in range(1, 6)]
    assert not texts.skipped
    if "txt" not in kind:
        assert found(read(path, columns=("text", "translation"))) == list(zip(CLEAN, TURNED, strict=True))


def test_files_come_in_order_whatever_names_them(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "a.txt").write_text("one")
    write(tmp_path, "jsonl")
    both = read(tmp_path / "*.txt", tmp_path / "*.jsonl").columns[0].to_pylist()
    assert both == ["one", "two", *CLEAN]
    assert both == read(tmp_path / "corpus.jsonl", tmp_path / "b.txt", tmp_path / "a.txt").columns[0].to_pylist()


def test_rows_that_are_no_text_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_ROW_BYTES", 50)
    path = tmp_path / "bad.txt"
    lines = [b"good", b"", b"\xff\xfe", b"\x00", b"a\x00cat", b"   ", b"x" * 51, b"last"]
    path.write_bytes(b"\n".join(lines))
    texts = read(path)
    assert texts.columns[0].to_pylist() == ["good", "acat", "last"]
    assert texts.uids.tolist() == [b"bad.txt:1", b"bad.txt:5", b"bad.txt:8"]
    assert texts.skipped == {"no text": 3, "not UTF-8": 1, "row over 16000000 bytes": 1}


def test_lines_without_end_cost_no_more_than_themselves(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"one\n" + b"x" * (MAX_ROW_BYTES + 9) + b"\ntwo")
    texts = read(path)
    assert texts.columns[0].to_pylist() == ["one", "two"]
    assert sum(texts.skipped.values()) == 1


def test_bad_rows_of_lists_are_counted_too(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b'{"text": "a", "translation": "b"}\n{"text": 5\n{"text": null, "translation": "b"}\n{"text": "c"}\n'
    )
    texts = read(path, columns=("text", "translation"))
    assert found(texts) == [("a", "b")]
    assert texts.skipped == {"bad JSON": 1, "no text": 2}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.txt", None, "absent.txt"),
        ("absent*.jsonl", None, "no file matches"),
        ("corpus.pdf", b"", "neither"),
        ("broken.parquet", b"PAR1 and nothing", "broken.parquet"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9000, mtime=0)[:-60], "cut.jsonl.gz"),
        ("cut.txt.gz", gzip.compress(b"abc\n" * 9000, mtime=0)[:-20], "cut.txt.gz"),
        ("other.jsonl", b'{"caption": "a"}', "no column text; it has caption"),
        ("numbers.jsonl", b'{"text": 5}', "int64"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PairmillError, match=said) as raised:
        read(tmp_path / name)
    assert "[ingest]" not in str(raised.value)
    assert "->" in str(raised.value)


def test_a_text_is_for_validation_or_for_training(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    lines = [f"text number {number % 2000}" for number in range(4000)]
    path.write_text("\n".join(lines))
    whole = read_texts([str(path)], ("text",), 0.1)
    train, validation = (whole.part(held).columns[0].to_pylist() for held in (False, True))
    assert sorted(train + validation) == sorted(lines)
    assert not set(train) & set(validation)
    assert 0.07 < len(validation) / 4000 < 0.13
    for held in (False, True):
        part = whole.part(held)
        rows = [int(uid.partition(b":")[2]) for uid in part.uids.tolist()]
        assert part.columns[0].to_pylist() == [lines[row - 1] for row in rows]
    assert not read(path).held_out.any()


def test_a_changed_file_has_another_state(tmp_path: Path) -> None:
    paths = [write(tmp_path, "txt"), write(tmp_path, "jsonl")]
    before = states_of([str(path) for path in paths])
    assert before == states_of([str(path) for path in paths[::-1]])
    for path in paths:
        path.write_text("more than was there")
        after = states_of([str(path) for path in paths])
        assert after != before
        before = after
