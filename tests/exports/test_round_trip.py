"""Whatever a caption, a class or a number is, it comes back from every format as it was."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import reading_back
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading_back import READERS, Read

from pipeline.exports.images import Box, Caption, Image, number_or_none
from pipeline.exports.metadata import Field
from pipeline.exports.running import TARGETS as WRITERS
from pipeline.exports.staging import Part, Plan

SCORES = ("clip_score", "x.y", "x-y", "$id", " ", "é")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ['"', "\\", "\n", "\r\n", "\u2028", "\0", "</script>", "=1+1", "\ufeff", "{}", "a,b", "null", "NaN", "'; DROP"]
)
METADATA = {
    Field("licence", "text", 0): st.none() | TEXT,
    Field("x.y", "json", 0): st.none() | TEXT.map(json.dumps),
    Field("x-y", "boolean", 0): st.none() | st.booleans(),
    Field("metadata", "whole", 0): st.none() | st.integers(-(2**63), 2**63 - 1),
    Field("é", "number", 0): st.none() | st.floats(allow_nan=False, allow_infinity=False),
    Field("tags", "text", 1): st.none() | st.lists(st.none() | TEXT, max_size=3),
    Field("$id", "whole", 2): st.none() | st.lists(st.none() | st.lists(st.integers(-9, 9), max_size=2), max_size=2),
}
NUMBER = st.none() | st.floats(allow_nan=True, allow_infinity=True).map(number_or_none)
UNIT = st.floats(0, 1, width=32)


@st.composite
def images(draw: st.DrawFn) -> list[Image]:
    found = []
    for number in range(draw(st.integers(1, 4))):
        captions = tuple(
            Caption(
                f"{number:016x}{at:016x}",
                draw(TEXT),
                draw(TEXT),
                {name: draw(NUMBER) for name in SCORES},
                {field.name: draw(values) for field, values in METADATA.items()},
            )
            for at in range(draw(st.integers(1, 3)))
        )
        boxes = tuple(
            Box("region", (draw(UNIT), draw(UNIT), draw(UNIT), draw(UNIT)), draw(st.none() | TEXT), draw(UNIT))
            for _ in range(draw(st.integers(0, 3)))
        )
        side = draw(st.none() | st.integers(1, 2**31 - 1))
        found.append(Image(f"{number:09d}", "0" * 64, "train", side, side, captions, boxes, draw(st.binary())))
    return found


def written(to: str, given: list[Image], folder: Path) -> Path:
    """The images as one part, by the target alone."""
    pairs = sum(len(image.captions) for image in given)
    plan = Plan((Part("train", "00000", 0, 1, len(given), pairs),), SCORES, tuple(METADATA), ("region",))
    with WRITERS[to].part(folder, plan.parts[0], plan) as add:
        for image in given:
            add(image)
    WRITERS[to].finish(folder, plan)
    return folder


def as_read(image: Image) -> Read:
    return Read(
        image.split,
        image.jpeg,
        {caption.uid: (caption.url, caption.text) for caption in image.captions},
        {caption.uid: dict(caption.scores) for caption in image.captions},
        [(box.box, box.label, box.confidence) for box in image.boxes],
        {caption.uid: dict(caption.metadata) for caption in image.captions},
    )


@pytest.mark.parametrize("to", ["webdataset", "parquet", "jsonl", "open_clip"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(given_images=images())
def test_it_comes_back(to: str, given_images: list[Image]) -> None:
    with tempfile.TemporaryDirectory() as name:
        found = READERS[to](written(to, given_images, Path(name)))
    if to == "open_clip":
        expected = {
            caption.uid: Read("train", image.jpeg, {caption.uid: (None, caption.text)})
            for image in given_images
            for caption in image.captions
        }
    else:
        expected = {image.key: as_read(image) for image in given_images}
    assert found == expected


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(given_images=images())
def test_fiftyone_documents_come_back(given_images: list[Image]) -> None:
    """Whatever the names of scores and metadata, each is a field of its own; the whole image is no object."""
    with tempfile.TemporaryDirectory() as name:
        found = reading_back.fiftyone(written("fiftyone", given_images, Path(name)))
    for image in given_images:
        read, expected = found[image.key], as_read(image)
        assert (read.jpeg, read.captions) == (expected.jpeg, expected.captions)
        for uid, scores in expected.scores.items():
            assert list(read.scores[uid].values()) == list(scores.values())
            assert list(read.metadata[uid].values()) == list(expected.metadata[uid].values())
        objects = [box for box in expected.boxes if box[1] is not None or box[0] != (0, 0, 1, 1)]
        assert [box[1:] for box in read.boxes] == [box[1:] for box in objects]
        for (corners, *_), (box, *_) in zip(read.boxes, objects, strict=True):
            assert corners == pytest.approx(box, abs=1e-6)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(given_images=images())
def test_datasets_reads_them_as_they_were(given_images: list[Image], tmp_path: Path) -> None:
    import datasets

    shutil.rmtree(tmp_path)
    folder = written("huggingface", given_images, tmp_path / "out")
    rows = datasets.load_dataset(str(folder), split="train").cast_column("image", datasets.Image(decode=False))
    for row, image in zip(rows, given_images, strict=True):
        assert reading_back.of_record(row, row["image"]["bytes"]) == as_read(image)


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants one picture reads its row group, so none may be large, however many pictures a part has."""
    import pyarrow.parquet as pq

    from pipeline.exports import tables

    monkeypatch.setattr(tables, "BYTES_A_GROUP", 5000)
    monkeypatch.setattr(tables, "ROWS_A_GROUP", 4)
    sizes = [10] * 9 + [3000] * 5

    def caption(number: int) -> Caption:
        metadata = {field.name: None for field in METADATA} | {"licence": "x" * 5000 if number == 1 else None}
        return Caption(f"{number:032x}", "u", "t", dict.fromkeys(SCORES), metadata)

    made = [Image(f"{n:09d}", "", "train", 1, 1, (caption(n),), (), b"x" * size) for n, size in enumerate(sizes)]

    def groups(folder: Path) -> list[int]:
        (path,) = folder.iterdir()
        metadata = pq.read_metadata(path)
        return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]

    assert groups(written("huggingface", made, tmp_path / "out") / "data") == [2, 4, 4, 2, 2]
    assert groups(written("parquet", made, tmp_path / "tables") / "pairs") == [2, 4, 4, 4]
    assert groups(tmp_path / "tables" / "images") == [4, 4, 3, 2, 1]
