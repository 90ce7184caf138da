"""`export`: what each format holds, read back by the programs it is for, against what must be kept."""

import hashlib
import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reading_back
from kept_web import ODD_COLUMN, TEXTS, Web, picture_of, with_json_read
from made_dataset import Image, made_dataset, run_filter
from reading_back import READERS, Read

from pipeline.cli import main
from pipeline.engine import InlineEngine, LocalEngine
from pipeline.exports import TARGETS
from pipeline.exports.running import TARGETS as WRITERS
from pipeline.exports.running import export
from pipeline.store.dataset import Dataset

FIFTYONE = os.environ.get("PAIRMILL_FIFTYONE_PYTHON", "")
"""A Python that has fiftyone and its database; it asks for another starlette than ours does."""


def exported(web: Web, to: str, out: Path, where: str = "true") -> Path:
    export(web.dataset, InlineEngine(), to, out, where)
    return out


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_all(found: dict[str, Read], web: Web) -> None:
    """Every image once, with its bytes, captions, numbers and boxes."""
    assert found.keys() == web.images.keys()
    for key, image in web.images.items():
        read = found[key]
        assert (read.split, read.jpeg) == (image.split, image.jpeg)
        assert read.captions == image.captions
        assert list(read.captions) == sorted(read.captions)
        assert read.scores == image.scores
        assert read.boxes == image.boxes
        assert {uid: with_json_read(own) for uid, own in read.metadata.items()} == image.metadata


def test_the_made_up_web_has_what_the_tests_are_about(web: Web) -> None:
    assert {image.split for image in web.images.values()} == {"train", "validation", "test"}
    assert {text for image in web.images.values() for _, text in image.captions.values()} >= set(TEXTS)
    assert max(len(image.captions) for image in web.images.values()) > 3
    assert {bool(image.boxes) for image in web.images.values()} == {True, False}
    with web.dataset.connect() as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (web.pairs,)
    assert tuple(WRITERS) == TARGETS == tuple(READERS)


@pytest.mark.parametrize("to", ["webdataset", "parquet", "jsonl", "huggingface"])
def test_all_that_is_kept_comes_back(web: Web, tmp_path: Path, to: str) -> None:
    said = export(web.dataset, InlineEngine(), to, tmp_path / "out")
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert said == f"{len(web.images):,} images with {web.pairs:,} pairs in {tmp_path / 'out'}: {size:,} bytes"
    check_all(READERS[to](tmp_path / "out"), web)
    assert [path.name for path in tmp_path.iterdir() if path.name != "datasets_cache"] == ["out"]


def test_imagefolder_of_datasets_opens_jsonl(web: Web, tmp_path: Path) -> None:
    """It takes texts that are dates for times."""
    times = {
        key: replace(image, metadata={uid: times_for_dates(own) for uid, own in image.metadata.items()})
        for key, image in web.images.items()
    }
    check_all(reading_back.imagefolder(exported(web, "jsonl", tmp_path / "out")), replace(web, images=times))


def times_for_dates(metadata: dict[str, Any]) -> dict[str, Any]:
    def time(value: str | None) -> datetime | None:
        return value and datetime.fromisoformat(value).replace(tzinfo=None)

    times = {name: time(metadata[name]) for name in ("day", "taken", "uploaded")}
    return metadata | times | {"days": [time(value) for value in metadata["days"]]}


def test_the_card_and_the_parquet_say_the_same_to_datasets(web: Web, tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet as pq

    out = exported(web, "huggingface", tmp_path / "out")
    info = datasets.load_dataset_builder(str(out)).info
    for path in (out / "data").iterdir():
        assert datasets.Features.from_arrow_schema(pq.read_schema(path)) == info.features
    assert isinstance(info.features["image"], datasets.Image)
    caption = info.features["captions"].feature
    assert caption["scores"][ODD_COLUMN] == datasets.Value("float64")
    assert caption["metadata"]["nsfw"] == datasets.Value("bool")
    assert caption["metadata"]["polygons"] == datasets.List(datasets.List(datasets.Value("float64")))
    assert caption["metadata"]["_type__"] == caption["metadata"]["file_name_"] == datasets.Value("string")
    numbers = Counter(image.split for image in web.images.values())
    assert {name: split.num_examples for name, split in info.splits.items()} == numbers
    assert list(info.splits) == ["train", "validation", "test"]


def as_fiftyone(image: Any) -> tuple[dict[str, Any], list[Any]]:
    """An image's scores under names that FiftyOne takes, and its boxes without the whole image."""
    scores = {
        uid: {"a__b___c__DROP" if name == ODD_COLUMN else name: value for name, value in own.items()}
        for uid, own in image.scores.items()
    }
    return scores, [box for box in image.boxes if box[1] is not None]


def test_fiftyone_samples_are_as_its_format_has_them(web: Web, tmp_path: Path) -> None:
    found = reading_back.fiftyone(exported(web, "fiftyone", tmp_path / "out"))
    assert found.keys() == web.images.keys()
    for key, image in web.images.items():
        scores, boxes = as_fiftyone(image)
        read = found[key]
        assert (read.split, read.jpeg, read.captions, read.scores) == (image.split, image.jpeg, image.captions, scores)
        for uid, expected in image.metadata.items():
            who = json.loads(read.metadata[uid]["who"] or "null")
            assert list((read.metadata[uid] | {"who": who}).values()) == list(expected.values())
        for (corners, *said), (box, *wanted) in zip(read.boxes, boxes, strict=True):
            assert said == wanted
            assert corners == pytest.approx(box, abs=1e-7)


@pytest.mark.slow
@pytest.mark.skipif(not FIFTYONE, reason="PAIRMILL_FIFTYONE_PYTHON names no Python with fiftyone")
def test_fiftyone_itself_opens_it(web: Web, tmp_path: Path) -> None:
    out = exported(web, "fiftyone", tmp_path / "out")
    script = Path(__file__).with_name("fiftyone_reads.py")
    done = subprocess.run([FIFTYONE, script, out], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tags"] == Counter(image.split for image in web.images.values())
    assert found["samples"].keys() == web.images.keys()
    for key, image in web.images.items():
        scores, boxes = as_fiftyone(image)
        sample = found["samples"][key]
        captions = {uid: (url, text) for uid, url, text in sample["captions"]}
        assert captions == image.captions
        assert sample["words"] == scores[min(scores)]["words"]
        asked = ("licence", "nsfw", "photo", "tags", "polygons")
        own = [image.metadata[uid] for uid in sorted(image.metadata)]
        assert sample["metadata"] == [[metadata[name] for name in asked] for metadata in own]
        assert sample["embedding"] == own[0]["embedding"]
        assert sample["size"] == list(picture_of(image.jpeg).size)
        assert [label for _, label in sample["boxes"]] == [label for _, label, _ in boxes]
        for (relative, _), (box, *_) in zip(sample["boxes"], boxes, strict=True):
            x, y, width, height = relative
            assert (x, y, x + width, y + height) == pytest.approx(box, abs=1e-6)


def open_clip_samples(out: Path, split: str, train: bool, batch: int) -> list[tuple[tuple[int, ...], str]]:
    """One epoch of the loader that open_clip's trainer makes of these arguments: (picture's size, text)."""
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args

    sizes = json.loads((out / split / "sizes.json").read_text())
    tars = f"{out}/{split}/{{00000..{len(sizes) - 1:05d}}}.tar"
    data = ["--train-data", tars] if train else ["--val-data", tars, "--val-num-samples", str(sum(sizes.values()))]
    arguments = parse_args([*data, "--dataset-type", "webdataset", "--batch-size", str(batch), "--workers", "0"])
    arguments.world_size, arguments.rank, arguments.distributed = 1, 0, False
    texts: list[str] = []

    def tokenizer(text: str) -> list[int]:
        texts.append(text)
        return [len(texts) - 1]

    info = get_wds_dataset(arguments, lambda image: image.size, train, tokenizer=tokenizer)
    assert info.dataloader.num_samples == sum(sizes.values())
    return [
        (tuple(size), texts[number])
        for sizes_of_batch, numbers in info.dataloader
        for size, number in zip(_rows(sizes_of_batch), _rows(numbers), strict=True)
    ]


def _rows(batch: Any) -> list[Any]:
    return batch.tolist() if hasattr(batch, "tolist") else list(batch)


@pytest.fixture
def _tars_end_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip asks for webdataset up to 0.2.86; later ones say where a tar ends, at which its trainer stumbles."""
    import inspect

    from open_clip_train import data

    if "eof_value" in inspect.signature(data.tar_file_expander).parameters:
        monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))


@pytest.mark.usefixtures("_tars_end_quietly")
@pytest.mark.parametrize("train", [True, False])
def test_open_clip_sees_every_pair_once(web: Web, tmp_path: Path, train: bool) -> None:
    out = exported(web, "open_clip", tmp_path / "out")
    found = reading_back.open_clip(out)
    assert found == {
        uid: Read(image.split, image.jpeg, {uid: (None, text)})
        for image in web.images.values()
        for uid, (_, text) in image.captions.items()
    }
    for split in ("train", "validation", "test"):
        wanted = Counter(
            (picture_of(image.jpeg).size, text)
            for image in web.images.values()
            if image.split == split
            for _, text in image.captions.values()
        )
        batch = 1 if train else 4
        assert Counter(open_clip_samples(out, split, train, batch)) == wanted


@pytest.mark.parametrize("to", TARGETS)
def test_the_same_bytes_whoever_writes_them(web: Web, tmp_path: Path, to: str) -> None:
    first = digests(exported(web, to, tmp_path / "one"))
    assert digests(exported(web, to, tmp_path / "two")) == first
    assert first


def test_several_workers_write_the_same(web: Web, tmp_path: Path) -> None:
    engine = LocalEngine(2)
    try:
        for to in ("huggingface", "fiftyone"):
            export(web.dataset, engine, to, tmp_path / f"two-{to}")
            assert digests(exported(web, to, tmp_path / f"one-{to}")) == digests(tmp_path / f"two-{to}")
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("to", "names"),
    [
        ("webdataset", {"S/N.tar"}),
        ("parquet", {"pairs/S-N-of-N.parquet", "images/S-N-of-N.parquet"}),
        ("jsonl", {"S/metadata.jsonl", "S/images/N/K.jpg"}),
        ("huggingface", {"README.md", "data/S-N-of-N.parquet"}),
        ("fiftyone", {"metadata.json", "samples.json", "data/S/N/K.jpg"}),
        ("open_clip", {"S/N.tar", "S/sizes.json"}),
    ],
)
def test_nothing_else_lies_there(web: Web, tmp_path: Path, to: str, names: set[str]) -> None:
    """S: a split; N: the number of a part, of five digits; K: a key."""
    found = {path.relative_to(tmp_path / "out").as_posix() for path in exported(web, to, tmp_path / "out").rglob("*")}
    files = {name for name in found if (tmp_path / "out" / name).is_file()}
    shapes = {re.sub(r"\d{9}", "K", re.sub("train|validation|test", "S", name)) for name in files}
    assert {re.sub(r"\d{5}", "N", shape) for shape in shapes} == names


def test_where_takes_a_part_of_the_pairs(web: Web, tmp_path: Path) -> None:
    out = tmp_path / "an empty [1] *?{a,b} 'folder'"
    out.mkdir()
    where = "split <> 'train' AND text LIKE '%fox%' -- a comment"
    found = reading_back.jsonl(exported(web, "jsonl", out, where))
    wanted = {
        (image.key, uid)
        for image in web.images.values()
        for uid, (_, text) in image.captions.items()
        if image.split != "train" and "fox" in text
    }
    assert {(key, uid) for key, read in found.items() for uid in read.captions} == wanted
    assert wanted


def test_a_dataset_without_boxes_numbers_and_columns_of_its_own(tmp_path: Path) -> None:
    pictures = [Image("http://x/a", picture_bytes(1)), Image("http://x/b", picture_bytes(2))]
    dataset = made_dataset(tmp_path / "data", [("http://x/a", "one"), ("http://x/b", "two")], [pictures])
    run_filter(dataset, {})
    without_numbers(dataset)
    for to in TARGETS:
        export(dataset, InlineEngine(), to, tmp_path / to)
        found = READERS[to](tmp_path / to)
        assert sorted(text for read in found.values() for _, text in read.captions.values()) == ["one", "two"]
        assert not any(read.boxes or any(read.scores.values()) for read in found.values())
        assert not any(any(read.metadata.values()) for read in found.values())


def picture_bytes(seed: int) -> bytes:
    import numpy as np
    from kept_web import picture

    return picture(np.random.default_rng(seed))


def without_numbers(dataset: Dataset) -> None:
    """As `screen` leaves it where the recipe has no rule that compares numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from made_dataset import write_table

    shards = {}
    for path in dataset.screened.paths(".measured.parquet"):
        name = path.name.removesuffix(".measured.parquet")
        verdicts = pq.read_table(path.with_name(f"{name}.verdicts.parquet"))
        measured = pq.read_table(path, columns=["uid", "failures"])
        shards[name] = {f"{name}.verdicts": verdicts, f"{name}.measured": pa.table(measured)}
    write_table(dataset.screened, shards, {"rules": {}})


def test_the_command(web: Web, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--data", str(web.dataset.root), "--to", "jsonl", "--workers", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--where", "split = 'test'"]) == 0
    assert " images with " in capfd.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "is not empty\n  -> name another folder" in capfd.readouterr().err
