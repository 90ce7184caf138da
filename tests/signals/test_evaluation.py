"""Decontamination: images of the corpus that are in evaluation sets, against comparing all with all."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_dataset import Image, Inline, jpeg, made_dataset, run_filter, signal, verdicts
from PIL import Image as Pillow
from tiny_clip import write_tiny_clip

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE
from pipeline.signals.phash import phashes
from pipeline.signals.pictures import decoded, shrunk
from pipeline.store.dataset import Dataset

SIDE = 64


def pixels(seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    small = Pillow.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((200, 160), Pillow.Resampling.BICUBIC))


def saved(seed: int, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Pillow.fromarray(pixels(seed)).save(stream, kind, **options)
    return stream.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """Evaluation sets of the pictures 0 to 5, some of which are copies, and none of 6 and above."""
    folder = tmp_path / "sets" / "coco" / "val"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(saved(0, "PNG"))
    (folder / "b.JPG").write_bytes(saved(1, "JPEG", quality=60))
    (folder / "again.png").write_bytes(saved(0, "PNG"))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    (tmp_path / "sets" / "shards").mkdir()
    for shard, seeds in (("one", (2, 3)), ("two", (4, 5))):
        members = {f"{seed}.webp": saved(seed, "WEBP", quality=90) for seed in seeds}
        write_tar(tmp_path / "sets" / "shards" / f"{shard}.tar", {"readme.json": json.dumps({}).encode(), **members})
    return [str(tmp_path / "sets" / "coco"), str(tmp_path / "sets" / "shards" / "*.tar")]


def corpus(folder: Path) -> Dataset:
    """Pictures 0 to 9 as the download would have stored them."""
    stored = [jpeg(shrunk(pixels(seed), SIDE)) for seed in range(10)]
    images = [Image(f"http://a/{seed}", content) for seed, content in enumerate(stored)]
    pairs = [(image.url, "a text") for image in images]
    return made_dataset(folder, pairs, [images[:6], images[6:]])


DOWNLOAD = {"image_size": SIDE}


def test_images_of_an_evaluation_set_fall_whatever_format_it_is_in(tmp_path: Path, sets: list[str]) -> None:
    dataset = corpus(tmp_path / "data")
    said = run_filter(dataset, {"near_evaluation": 6}, evaluation=sets, download=DOWNLOAD)
    assert {url for url, _ in verdicts(dataset)} == {f"http://a/{seed}" for seed in range(6)}
    assert "2 evaluation pictures cannot be decoded" in said
    assert "broken.jpg" in said
    found = {
        row["key"]: (row["evaluation_distance"], row["evaluation_of"]) for row in signal(dataset, "evaluation_distance")
    }
    assert Path(found["000000000"][1]).name == "a.png"  # of equal ones the first
    assert [found[f"00000000{seed}"][1] for seed in range(2, 6)] == ["2", "3", "4", "5"]
    hashes = {row["key"]: row["phash"] for row in signal(dataset, "evaluation_phash")}
    own = phashes([decoded(jpeg(shrunk(pixels(seed), SIDE))) for seed in range(6)]).tolist()
    for seed in range(6):
        distances = [(own[seed] ^ value).bit_count() for value in hashes.values() if value is not None]
        assert found[f"00000000{seed}"][0] == min(distances)


def test_by_embedding(tmp_path: Path, sets: list[str]) -> None:
    dataset = corpus(tmp_path / "data")
    settings = {"evaluation": sets, "clip": write_tiny_clip(tmp_path), "download": DOWNLOAD}
    run_filter(dataset, {"evaluation_similarity": 1.0}, **settings)
    others = [row for row in signal(dataset, "evaluation_embeddings") if row["embedding"]]
    matrix = np.array([row["embedding"] for row in others])
    own = {row["key"]: np.array(row["embedding"]) for row in signal(dataset, "embeddings")}
    found = {row["key"]: row for row in signal(dataset, "evaluation_cosine")}
    assert set(found) == set(own)
    for key, vector in own.items():
        cosines = matrix @ vector
        assert found[key]["evaluation_cosine"] == pytest.approx(cosines.max(), abs=1e-5)
        assert cosines[[row["key"] for row in others].index(found[key]["evaluation_like"])] == pytest.approx(
            cosines.max()
        )
    threshold = sorted(row["evaluation_cosine"] for row in found.values())[5]
    run_filter(dataset, {"evaluation_similarity": threshold}, **settings)
    above = {key for key, row in found.items() if row["evaluation_cosine"] > threshold}
    assert {f"http://a/{int(key[4]) * 6 + int(key[-1])}" for key in above} == {url for url, _ in verdicts(dataset)}
    assert len(above) == 4


def test_what_is_measured_again(tmp_path: Path, sets: list[str]) -> None:
    dataset, engine = corpus(tmp_path / "data"), Inline()

    def again(radius: float, evaluation: list[str]) -> str:
        return run_filter(dataset, {"near_evaluation": radius}, engine, evaluation=evaluation, download=DOWNLOAD)

    again(6, sets)
    assert len(engine.done) == 2 + 3
    assert again(6, sets) == UP_TO_DATE
    again(2, sets)
    assert len(engine.done) == 5
    added = tmp_path / "sets" / "shards" / "zzz.tar"
    write_tar(added, {"7.png": saved(7, "PNG")})
    again(6, sets)
    assert engine.done[5:] == ["filter: evaluation sets/00003"]
    assert ("http://a/7", "a text") in verdicts(dataset)
    again(6, sets[:1])
    assert {url for url, _ in verdicts(dataset)} == {"http://a/0", "http://a/1"}


@pytest.mark.parametrize("places", [[], ["nowhere"], ["empty"], ["nothing/*.tar"]])
def test_a_place_without_pictures_is_said_so(
    tmp_path: Path, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PairmillError, match="evaluation"):
        run_filter(corpus(tmp_path / "data"), {"near_evaluation": 6}, evaluation=places)


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(b"what is this" * 100)
    with pytest.raises(PairmillError, match=r"set\.tar"):
        run_filter(corpus(tmp_path / "data"), {"near_evaluation": 6}, evaluation=[str(tmp_path / "set.tar")])
