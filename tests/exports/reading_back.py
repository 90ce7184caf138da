"""Exports read by the programs they are for: folder -> key -> `Read`. Nothing of PairMill is used."""

import io
import json
import tarfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Scores = dict[str, float | None]


@dataclass
class Read:
    """`captions`: uid -> (url, text), None where the format has no urls; `boxes`: (x1 y1 x2 y2, label, confidence)."""

    split: str
    jpeg: bytes | None
    captions: dict[str, tuple[str | None, str]]
    scores: dict[str, Scores] = field(default_factory=dict)
    boxes: list[tuple[tuple[float, ...], str | None, float | None]] = field(default_factory=list)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)


def of_record(record: dict[str, Any], jpeg: bytes | None) -> Read:
    """From the JSON of an image."""
    assert {box["extractor"] for box in record["boxes"]} <= {"region"}
    return Read(
        record["split"],
        jpeg,
        {caption["uid"]: (caption["url"], caption["text"]) for caption in record["captions"]},
        {caption["uid"]: caption.get("scores", {}) for caption in record["captions"]},
        [(tuple(box["box"]), box["label"], box["confidence"]) for box in record["boxes"]],
        {caption["uid"]: caption.get("metadata", {}) for caption in record["captions"]},
    )


def webdataset(folder: Path) -> dict[str, Read]:
    import webdataset as wds

    found = {}
    for split in sorted(path.name for path in folder.iterdir()):
        tars = sorted(map(str, (folder / split).glob("*.tar")))
        for sample in wds.WebDataset(tars, shardshuffle=False, empty_check=False).decode():
            record = sample["json"]
            assert record["key"] == sample["__key__"]
            assert record["split"] == split
            assert record["text"] == sample["txt"] == record["captions"][0]["text"]
            assert record["key"] not in found
            found[record["key"]] = of_record(record, sample["jpg"])
    return found


def parquet(folder: Path) -> dict[str, Read]:
    """By DuckDB's join, and by pyarrow to see that both read the same."""
    import duckdb
    import pyarrow.dataset as ds

    columns = "uid, p.key AS key, p.split AS split, url, text, boxes, jpeg, bytes"
    said = [name for name in ds.dataset(folder / "pairs").schema.names if name in ("scores", "metadata")]
    with duckdb.connect() as connection:
        answer = connection.execute(
            f"SELECT {', '.join([columns, *said])} FROM read_parquet('{folder}/pairs/*.parquet') p "
            f"JOIN read_parquet('{folder}/images/*.parquet') i ON i.key = p.key AND i.split = p.split"
        )
        names = [name for name, *_ in answer.description]
        rows = [dict(zip(names, values, strict=True)) for values in answer.fetchall()]
    found: dict[str, Read] = {}
    for row in rows:
        assert row["bytes"] == len(row["jpeg"])
        own = found.setdefault(
            row["key"],
            of_record({"split": row["split"], "captions": [], "boxes": row["boxes"]}, row["jpeg"]),
        )
        own.captions[row["uid"]] = (row["url"], row["text"])
        own.scores[row["uid"]], own.metadata[row["uid"]] = row.get("scores", {}), row.get("metadata", {})
    pairs = ds.dataset(folder / "pairs").to_table().to_pylist()
    assert len(pairs) == sum(len(read.captions) for read in found.values())
    assert all(found[row["key"]].captions[row["uid"]] == (row["url"], row["text"]) for row in pairs)
    images = ds.dataset(folder / "images").to_table(columns=["key", "jpeg"]).to_pylist()
    assert {row["key"]: row["jpeg"] for row in images} == {key: read.jpeg for key, read in found.items()}
    return found


def jsonl(folder: Path) -> dict[str, Read]:
    found = {}
    for path in sorted(folder.glob("*/metadata.jsonl")):
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            record = json.loads(line, parse_constant=_no_constant)
            assert record["text"] == record["captions"][0]["text"]
            assert record["split"] == path.parent.name
            assert record["key"] not in found
            found[record["key"]] = of_record(record, (path.parent / record["file_name"]).read_bytes())
    return found


def imagefolder(folder: Path) -> dict[str, Read]:
    import datasets

    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder))
    found = {}
    for split, rows in loaded.items():
        assert isinstance(rows.features["image"], datasets.Image)
        for row in rows:
            assert row["split"] == split
            assert row["image"].size == _size(Path(row["image"].filename).read_bytes())
            found[row["key"]] = of_record(row, Path(row["image"].filename).read_bytes())
    return found


def huggingface(folder: Path) -> dict[str, Read]:
    import datasets

    loaded = datasets.load_dataset(str(folder))
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    found = {}
    for split, rows in loaded.items():
        for row, stored in zip(rows, raw[split], strict=True):
            assert row["split"] == split
            assert row["text"] == row["captions"][0]["text"]
            jpeg = stored["image"]["bytes"]
            assert row["image"].size == _size(jpeg)
            row["image"].load()
            found[row["key"]] = of_record(row, jpeg)
    return found


def fiftyone(folder: Path) -> dict[str, Read]:
    """An independent reader of the documented format: every field must be declared, with the type that it has."""
    declared = json.loads((folder / "metadata.json").read_text())
    assert declared["media_type"] == "image"
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"), parse_constant=_no_constant)["samples"]
    found, ids = {}, set()
    for sample in samples:
        _check_document(sample, declared["sample_fields"], ids)
        path = (folder / sample["filepath"]).resolve()
        assert path.is_relative_to(folder.resolve())
        assert sample["caption"] == sample["pairs"][0]["text"]
        for prefix in ("score_", "metadata_"):
            assert _with_prefix(sample, prefix) == _with_prefix(sample["pairs"][0], prefix)
        detections = [found for value in _with_prefix(sample, "boxes_").values() for found in value["detections"]]
        (split,) = sample["tags"]
        found[sample["key"]] = Read(
            split,
            path.read_bytes(),
            {pair["uid"]: (pair["url"], pair["text"]) for pair in sample["pairs"]},
            {pair["uid"]: _with_prefix(pair, "score_") for pair in sample["pairs"]},
            [
                (_corners(detection["bounding_box"]), detection["label"], detection["confidence"])
                for detection in detections
            ],
            {pair["uid"]: _with_prefix(pair, "metadata_") for pair in sample["pairs"]},
        )
    return found


def _with_prefix(document: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Those fields, without it."""
    return {name.removeprefix(prefix): value for name, value in document.items() if name.startswith(prefix)}


def open_clip(folder: Path) -> dict[str, Read]:
    """Its tars, a pair a sample: "key" is the uid here. What open_clip's loader makes of them is tested apart."""
    found = {}
    for split in sorted(path.name for path in folder.iterdir()):
        sizes = json.loads((folder / split / "sizes.json").read_text())
        tars = sorted((folder / split).glob("*.tar"))
        assert sorted(sizes) == [tar.name for tar in tars] == [f"{n:05d}.tar" for n in range(len(tars))]
        for tar in tars:
            with tarfile.open(tar) as opened:
                contents = {member.name: _content(opened, member) for member in opened}
            assert len(contents) == 2 * sizes[tar.name] > 0
            for name in contents:
                uid, _, suffix = name.partition(".")
                if suffix == "jpg":
                    assert uid not in found
                    found[uid] = Read(split, contents[name], {uid: (None, contents[f"{uid}.txt"].decode())})
    return found


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None, f"{member.name} is no file"
    return stream.read()


def _no_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def _corners(box: list[float]) -> tuple[float, ...]:
    x, y, width, height = box
    return (x, y, x + width, y + height)


def _size(content: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        return opened.size


_KINDS: dict[str, Any] = {
    "String": str,
    "Float": float,
    "Int": int,
    "Boolean": bool,
    "List": list,
    "EmbeddedDocument": dict,
}


def _check_document(document: dict[str, Any], fields: list[dict[str, Any]], ids: set[str]) -> None:
    by_name = {entry["db_field"]: entry for entry in fields}
    for name, value in document.items():
        if name in ("_media_type", "_rand", "_cls", "attributes"):
            continue
        entry = by_name[name]
        kind = entry["ftype"].removeprefix("fiftyone.core.fields.").removesuffix("Field")
        if kind == "ObjectId":
            assert int(value["$oid"], 16) >= 0
            assert len(value["$oid"]) == 24
            assert value["$oid"] not in ids
            ids.add(value["$oid"])
            continue
        assert value is None or isinstance(value, _KINDS[kind]), (name, value)
        inner = entry["subfield"] or ""
        if kind == "EmbeddedDocument":
            assert value["_cls"] == entry["embedded_doc_type"].rpartition(".")[2]
            _check_document(value, entry["fields"], ids)
        elif inner.endswith("EmbeddedDocumentField"):
            for element in value:
                assert element["_cls"] == entry["embedded_doc_type"].rpartition(".")[2]
                _check_document(element, entry["fields"], ids)
        elif inner and value:
            of = _KINDS[inner.removeprefix("fiftyone.core.fields.").removesuffix("Field")]
            assert all(isinstance(element, of) for element in value), (name, value)


READERS = {
    "webdataset": webdataset,
    "parquet": parquet,
    "jsonl": jsonl,
    "huggingface": huggingface,
    "fiftyone": fiftyone,
    "open_clip": open_clip,
}


def by_split(found: dict[str, Read]) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = defaultdict(set)
    for key, read in found.items():
        splits[read.split].add(key)
    return dict(splits)
