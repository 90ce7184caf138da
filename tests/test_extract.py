"""Stage extract: one pass for all extractors, failures by name, shards that grow, and what a fault leaves behind."""

import hashlib
import json
import multiprocessing
import random
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from command import call, kill_hard, start
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dataset import Image, jpeg, made_dataset, run_filter
from safetensors.torch import save_file

from pipeline import catalog, extract, summary
from pipeline.engine import Engine, InlineEngine, engine
from pipeline.errors import PairmillError
from pipeline.extractors import BUILDERS, decoding, one_pass
from pipeline.extractors.growing import merge_features, read_features
from pipeline.extractors.memory import CPU_BATCH, fitting
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.signals.pictures import decoded
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, FeatureStore, ImageFeatures, write_features
from pipeline.store.table import Shard, content_digest
from pipeline.weights import find

PIXEL = {"kind": "pixel", "image_size": 64, "patch": 32}
GRID = {"kind": "grid", "image_size": 64, "cells": 2}
BOTH = {"grid": GRID, "pixel": PIXEL}


@pytest.fixture(autouse=True)
def _no_extractor_is_left_from_another_test() -> Iterator[None]:
    one_pass._at_hand.cache_clear()
    yield
    one_pass._at_hand.cache_clear()


def picture(seed: int, width: int = 60, height: int = 48) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return jpeg(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def shards_of(number: int, images: int) -> list[list[Image]]:
    """Image i of shard s has 1000 * i + s bytes, for rules to tell them apart."""
    return [
        [Image(f"http://h/{s}/{i}", picture(97 * s + i, 40 + i, 30 + 2 * s), bytes=1000 * i + s) for i in range(images)]
        for s in range(number)
    ]


def dataset_of(folder: Path, shards: Sequence[Sequence[Image]], **rules: Any) -> Dataset:
    dataset = made_dataset(folder, [(image.url, "some words") for shard in shards for image in shard], shards)
    run_filter(dataset, rules)
    return dataset


def job_of(dataset: Dataset, sections: Mapping[str, Any], on: Engine | None = None, *only: str) -> Job:
    recipe = Recipe.model_validate({"name": "t", "extract": sections})
    return Job("extract", recipe, dataset, on or InlineEngine(), frozenset(only))


def run(dataset: Dataset, sections: Mapping[str, Any], on: Engine | None = None, *only: str) -> str:
    return extract.run(job_of(dataset, sections, on, *only))


def bytes_of(dataset: Dataset, *names: str) -> dict[str, str]:
    """Digest of every file of the features, and of the manifests without their seconds."""
    digests = {}
    for name in names or ("",):
        for path in sorted((dataset.root / "features" / name).rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                if path.name == "manifest.json":
                    content = json.dumps(json.loads(content) | {"seconds": None}).encode()
                digests[str(path.relative_to(dataset.root / "features"))] = hashlib.sha256(content).hexdigest()
    return digests


def shards_bytes(dataset: Dataset, *names: str) -> dict[str, str]:
    return {name: digest for name, digest in bytes_of(dataset, *names).items() if name.endswith(".parquet")}


def causes(dataset: Dataset, extractor: str) -> dict[str, str]:
    with dataset.connect() as connection:
        query = "SELECT key, cause FROM unextracted WHERE extractor = ? ORDER BY key"
        return dict(connection.execute(query, [extractor]).fetchall())


def retarred(dataset: Dataset, shard: str, lacks: str) -> None:
    """As if `download` had written a tar without this image."""
    path = dataset.images.folder / f"{shard}.tar"
    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m)) for m in tar if not m.name.startswith(lacks)]
        with tarfile.open(path.with_suffix(".new"), "w") as new:
            for member, content in members:
                new.addfile(member, content)
    path.with_suffix(".new").rename(path)
    manifest = json.loads((dataset.images.folder / "manifest.json").read_text())
    for file in (file for shard in manifest["shards"] for file in shard["files"] if file["name"] == path.name):
        file |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest["digest"] = content_digest([Shard.from_json(shard) for shard in manifest["shards"]], manifest["info"])
    (dataset.images.folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_cannot_be_extracted_is_named_with_its_cause_and_the_rest_is_there(tmp_path: Path) -> None:
    good = picture(1)
    contents = [good, b"", good[:-30], b"no picture at all", picture(2, 1, 1), picture(3, 1, 20_000), picture(4)]
    images = [[Image(f"http://h/{i}", content) for i, content in enumerate(contents)]]
    dataset = dataset_of(tmp_path, images)
    retarred(dataset, "00000", "000000006")
    assert "unextracted" not in (catalog.refresh(dataset) or ())
    said = run(dataset, BOTH)
    assert "unextracted" in (catalog.refresh(dataset) or ())
    assert catalog.refresh(dataset) is None
    wanted = dict.fromkeys(("000000001", "000000002", "000000003"), "unreadable") | {"000000006": "missing"}
    for name in BOTH:
        store = FeatureStore(dataset.features(name))
        assert list(store.keys()) == ["000000000", "000000004", "000000005"]
        assert causes(dataset, name) == wanted
        counts = dataset.features(name).manifest.counts()
        assert counts == {"rows": 3, "failed": 4, "failed/missing": 1, "failed/unreadable": 3}
        assert f"{name}: 3 images, 4 failed (missing 1, unreadable 3)" in said
        assert summary.collect(dataset)["features"][name]["failed"] == {"missing": 1, "unreadable": 3}
    assert "missing 1, unreadable 3" in summary.table(summary.collect(dataset))
    assert run(dataset, BOTH) == UP_TO_DATE


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_nan_from_a_model_is_a_failure_of_that_image_and_of_that_extractor(tmp_path: Path, dtype: str) -> None:
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = torch.load(find(Recipe.model_validate({"name": "t", "extract": {"g": GRID}}).extract["g"]).path)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    with torch.no_grad():
        model.conv_head.weight[3, 5] = torch.nan
    save_file(model.state_dict(), tmp_path / "nan.safetensors")
    dataset = dataset_of(tmp_path / "data", shards_of(2, 3))
    sections = {"sick": GRID | {"weights": str(tmp_path / "nan.safetensors"), "dtype": dtype}, "pixel": PIXEL}
    said = run(dataset, sections)
    assert "sick: 0 images, 6 failed (not_finite 6)" in said
    assert set(causes(dataset, "sick").values()) == {"not_finite"}
    assert len(FeatureStore(dataset.features("sick"))) == 0
    assert len(FeatureStore(dataset.features("pixel"))) == 6
    assert run(dataset, sections) == UP_TO_DATE


class Cramped:
    """A real extractor on a device that holds `room` images, and never one that is wider than `widest`."""

    def __init__(self, inner: Any, room: int, widest: int, error: Callable[[], Exception]) -> None:
        self.inner, self.room, self.widest, self.error = inner, room, widest, error
        self.identity, self.columns = inner.identity, inner.columns
        self.calls: list[int] = []

    def prepare(self, image: np.ndarray) -> Any:
        return image.shape[1], self.inner.prepare(image)

    def __call__(self, prepared: Sequence[Any]) -> Any:
        self.calls.append(len(prepared))
        if len(prepared) > self.room or any(width > self.widest for width, _ in prepared):
            raise self.error()
        return self.inner([image for _, image in prepared])


OUT_OF_MEMORY: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    "python": lambda: MemoryError("Unable to allocate 3.2 GiB for an array"),
}


def cramped(monkeypatch: pytest.MonkeyPatch, kind: str, room: int, widest: int, error: str) -> list[Cramped]:
    made: list[Cramped] = []

    def build(*arguments: Any) -> Cramped:
        made.append(Cramped(real(*arguments), room, widest, OUT_OF_MEMORY[error]))
        return made[-1]

    real = BUILDERS[kind]
    monkeypatch.setitem(BUILDERS, kind, build)
    return made


@pytest.mark.parametrize("error", list(OUT_OF_MEMORY))
@pytest.mark.parametrize("room", [1, 3, 8])
def test_a_batch_that_does_not_fit_is_halved_and_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, error: str
) -> None:
    images = shards_of(2, 11)
    one, other = dataset_of(tmp_path / "one", images), dataset_of(tmp_path / "other", images)
    run(one, {"pixel": PIXEL})
    one_pass._at_hand.cache_clear()
    made = cramped(monkeypatch, "pixel", room, 999, error)
    run(other, {"pixel": PIXEL | {"batch_size": 8}})
    assert shards_bytes(other) == shards_bytes(one)
    assert len(made) == 1
    assert sum(size > room for size in made[0].calls) <= 3, "what did not fit is asked for again and again"


def test_a_single_image_that_never_fits_fails_alone_and_the_batches_stay_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [Image(f"http://h/{i}", picture(i, 900 if i == 5 else 60, 40)) for i in range(24)]
    dataset = dataset_of(tmp_path, [images])
    made = cramped(monkeypatch, "pixel", 999, 800, "cuda")
    assert "23 images, 1 failed (out_of_memory 1)" in run(dataset, {"pixel": PIXEL | {"batch_size": 8}})
    assert causes(dataset, "pixel") == {"000000005": "out_of_memory"}
    assert made[0].calls[-2:] == [8, 8]


@pytest.mark.parametrize(("room", "found"), [(9999, 256), (256, 256), (255, 128), (100, 64), (31, 16), (7, 4)])
def test_on_a_gpu_the_batch_is_found_by_doubling(room: int, found: int) -> None:
    section = Recipe.model_validate({"name": "t", "extract": {"p": PIXEL}}).extract["p"]
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    real = BUILDERS["pixel"](section, find(section), cpu)
    cramped = Cramped(real, room, 999, OUT_OF_MEMORY["cuda"])
    fitted = fitting(cramped, None, gpu)
    assert fitted.size == found
    assert sum(size > room for size in cramped.calls) <= 3
    assert (fitting(cramped, 5, gpu).size, fitting(cramped, None, cpu).size) == (5, CPU_BATCH)


def test_an_error_that_is_not_of_memory_ends_the_stage_and_leaves_no_half_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(tmp_path, shards_of(1, 4))
    monkeypatch.setitem(OUT_OF_MEMORY, "bug", lambda: RuntimeError("shapes cannot be multiplied"))
    cramped(monkeypatch, "pixel", 0, 999, "bug")
    with pytest.raises(RuntimeError, match="multiplied"):
        run(dataset, BOTH)
    assert [path.name for path in dataset.root.glob("features/*/*")] == ["manifest.partial.jsonl"] * 2


def test_one_pass_makes_the_bytes_of_separate_passes(tmp_path: Path) -> None:
    images = shards_of(2, 19)
    images[0][4] = Image("http://h/0/4", b"rubbish", bytes=4000)
    sections = {"small": GRID | {"batch_size": 5}, "large": GRID | {"cells": 1, "dtype": "int8"}, "pixel": PIXEL}
    together, apart = dataset_of(tmp_path / "together", images), dataset_of(tmp_path / "apart", images)
    run(together, sections)
    for name in reversed(sections):
        run(apart, sections, None, name)
    assert bytes_of(together) == bytes_of(apart)


def test_several_workers_make_the_bytes_of_one(tmp_path: Path) -> None:
    images = shards_of(4, 9)
    one, several = dataset_of(tmp_path / "one", images), dataset_of(tmp_path / "several", images)
    sections = {"pixel": PIXEL, "large": PIXEL | {"image_size": 128}}
    run(one, sections)
    workers = engine("local", 2)
    try:
        run(several, sections, workers)
    finally:
        workers.close()
    assert bytes_of(several) == bytes_of(one)


def test_the_manifest_tells_what_made_the_features_and_a_batch_size_is_no_part_of_it(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, shards_of(1, 3))
    run(dataset, {"grid": GRID})
    identity = dataset.features("grid").manifest.info["identity"]
    weights = find(Recipe.model_validate({"name": "t", "extract": {"g": GRID}}).extract["g"])
    assert weights.path is not None
    assert identity["weights_sha256"] == hashlib.sha256(weights.path.read_bytes()).hexdigest()
    assert (identity["kind"], identity["model"], identity["trained"]) == ("grid", "tf_efficientnet_lite0", True)
    assert (identity["dtype"], identity["grid"]) == ("float16", [2, 2])
    assert identity["libraries"].keys() == {"numpy", "opencv", "timm", "torch"}
    assert identity["libraries"]["torch"] == torch.__version__.partition("+")[0]
    assert "batch_size" not in identity["settings"]
    before = bytes_of(dataset)
    assert run(dataset, {"grid": GRID | {"batch_size": 2}}) == UP_TO_DATE
    assert bytes_of(dataset) == before


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the stage decodes from here on."""
    seen: list[bytes] = []

    def noted(content: bytes) -> np.ndarray | None:
        seen.append(content)
        return decoded(content)

    monkeypatch.setattr(decoding, "decoded", noted)
    return seen


def stored(dataset: Dataset, name: str) -> dict[str, tuple[Any, ...]]:
    """Key -> its arrays as they are on the disk, scales of int8 included."""
    store = FeatureStore(dataset.features(name))
    found = {}
    for key in store:
        padded = store.gather([key])
        found[key] = tuple((column, array.tobytes()) for column, array in sorted(padded.arrays.items()))
    return found


def test_what_is_wanted_grows_and_shrinks_and_only_new_images_are_computed(
    tmp_path: Path, decodes: list[bytes]
) -> None:
    images = shards_of(3, 10)
    images[1][8] = Image("http://h/1/8", b"rubbish", bytes=8001)
    sections = {"pixel": PIXEL, "grid": GRID | {"dtype": "int8"}}
    dataset = dataset_of(tmp_path, images)
    had = set[str]()
    for least in (7001, 9000, 4002, 9002, 0, 5000):
        run_filter(dataset, {"min_bytes": least})
        wanted = {f"{s:05d}{i:04d}" for s in range(3) for i in range(10) if 1000 * i + s >= least}
        files, rows = shards_bytes(dataset), {name: stored(dataset, name) for name in sections if had}
        decodes.clear()
        run(dataset, sections)
        assert len(decodes) == len(wanted - had)
        had |= wanted
        for name in sections:
            now = stored(dataset, name)
            assert set(now) == had - {"000010008"}
            assert all(now[key] == value for key, value in rows.get(name, {}).items())
            assert causes(dataset, name) == ({"000010008": "unreadable"} if "000010008" in had else {})
        changed = {key[:5] for key in wanted - {key for store in rows.values() for key in store} - {"000010008"}}
        untouched = {name: digest for name, digest in files.items() if name.split("/")[1][:5] not in changed}
        assert untouched.items() <= shards_bytes(dataset).items()
        assert run(dataset, sections) == UP_TO_DATE
    whole = dataset_of(tmp_path / "whole", images)
    run(whole, sections)
    assert stored(whole, "pixel") == stored(dataset, "pixel")


def test_more_images_are_more_shards_and_only_those_are_extracted(tmp_path: Path, decodes: list[bytes]) -> None:
    images = shards_of(3, 4)
    dataset = dataset_of(tmp_path / "data", images[:2])
    run(dataset, BOTH)
    before = shards_bytes(dataset)
    more = dataset_of(tmp_path / "more", images)
    shutil.copytree(dataset.root / "features", more.root / "features")
    decodes.clear()
    run(more, BOTH)
    assert len(decodes) == 4
    assert {path: digest for path, digest in shards_bytes(more).items() if "/00002" not in path} == before
    assert list(FeatureStore(more.features("grid")).keys())[-1] == "000020003"


def flipped(path: Path, at: int) -> bytes:
    """Turn one bit of the file; returns what it held before."""
    content = path.read_bytes()
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    return content


@pytest.mark.parametrize("at", [700, 100, 9], ids=["in-a-picture", "in-a-header", "in-a-name"])
def test_a_damaged_tar_is_named_and_once_it_is_whole_again_nothing_is_lost(tmp_path: Path, at: int) -> None:
    images = shards_of(3, 5)
    dataset, undisturbed = dataset_of(tmp_path / "data", images), dataset_of(tmp_path / "undisturbed", images)
    tar = dataset.images.folder / "00001.tar"
    content = flipped(tar, at)
    with pytest.raises(PairmillError, match=r"00001\.tar"):
        run(dataset, BOTH)
    assert not any(dataset.root.glob("features/*/00001*"))
    assert len(list(dataset.root.glob("features/*/00000*"))) == 4
    tar.write_bytes(content)
    run(dataset, BOTH)
    run(undisturbed, BOTH)
    assert bytes_of(dataset) == bytes_of(undisturbed)


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_tar_without_its_parquet_or_the_other_way_round_is_named(tmp_path: Path, suffix: str, cut: bool) -> None:
    dataset = dataset_of(tmp_path, shards_of(2, 2))
    path = dataset.images.folder / f"00001{suffix}"
    path.write_bytes(path.read_bytes()[:50]) if cut else path.unlink()
    with pytest.raises(PairmillError, match=rf"images/00001{suffix} is missing or cut short\n.*make download"):
        run(dataset, BOTH)


def test_finished_features_are_not_given_up_for_what_cannot_be_made(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, shards_of(2, 2))
    run(dataset, BOTH)
    before = {path: path.read_bytes() for path in sorted(dataset.root.glob("features/*/*"))}
    name = next(name for name, section in BOTH.items() if section["kind"] == "grid")
    with pytest.raises(PairmillError, match="timm has no model 'nothing_like_it'"):
        run(dataset, {name: {**BOTH[name], "model": "nothing_like_it"}})
    with pytest.raises(PairmillError, match=f"{name} holds features of trained weights, and none are at hand"):
        run(dataset, {name: {"kind": "patch", "library": "timm", "model": "vit_tiny_patch16_224", "image_size": 32}})
    (dataset.features(name).folder / ".imported").touch()
    with pytest.raises(PairmillError, match=f"{name} holds imported features"):
        run(dataset, {name: {**BOTH[name], "cells": 3}})
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("file", ["000010000.parquet", "00001.parquet", "00001.failed.parquet"])
def test_damaged_features_that_are_to_grow_are_named_and_are_not_copied(tmp_path: Path, file: str) -> None:
    dataset = dataset_of(tmp_path, shards_of(2, 6), min_bytes=3000)
    run(dataset, {"pixel": PIXEL})
    run_filter(dataset, {})
    path = dataset.features("pixel").folder / file.replace("10000", "1")
    flipped(path, 9 if file.startswith("000010000") else path.stat().st_size - 20)
    with pytest.raises(PairmillError, match=rf"{path.name}[^\n]*\n.*make extract"):
        run(dataset, {"pixel": PIXEL})
    path.unlink()
    run(dataset, {"pixel": PIXEL})
    assert len(FeatureStore(dataset.features("pixel"))) == 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def recipe_of(folder: Path, sections: Mapping[str, Any]) -> Path:
    path = folder / "recipe.toml"
    lines = [
        f"[extract.{n}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in s.items()) for n, s in sections.items()
    ]
    path.write_text('name = "t"\n' + "".join(lines))
    return path


def test_a_full_disk_is_named_and_once_there_is_room_nothing_is_lost(small_disk: Path, tmp_path: Path) -> None:
    images = [[Image(f"http://h/{s}/{i}", picture(100 * s + i, 20, 20)) for i in range(12)] for s in range(5)]
    dataset, undisturbed = dataset_of(small_disk, images), dataset_of(tmp_path / "undisturbed", images)
    sections = {"pixel": PIXEL | {"image_size": 96}}
    arguments = ("extract", "--data", small_disk, "--recipe", recipe_of(tmp_path, sections), "--workers", 1)
    status, out, err = call(*arguments, cwd=tmp_path)
    assert (status, out) == (1, "")
    assert re.search(r"error: .*features.*: No space left on device\n  -> make room", err)
    assert "Traceback" not in err
    left = [path.name for path in dataset.features("pixel").folder.iterdir()]
    assert "00000.parquet" in left
    assert not [name for name in left if name.endswith(".partial")]
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    assert call(*arguments, cwd=tmp_path)[0] == 0
    run(undisturbed, sections)
    assert bytes_of(dataset) == bytes_of(undisturbed)


STEPS = (6000, 9000, 3000, 0)
"""Fewest bytes of a kept image, extraction after extraction: shards are made, kept, and grow twice."""


def killed_at_random(
    folder: Path, images: list[list[Image]], sections: Mapping[str, Any], kills: int, begin: Callable[[Dataset], Any]
) -> int:
    """Go all STEPS twice, once with kills at random moments of what `begin` starts, and compare the ends; returns how
    many were killed before they were done."""
    undisturbed, dataset = dataset_of(folder / "undisturbed", images), dataset_of(folder / "killed", images)
    draw, killed, seconds = random.Random(kills), 0, 1.0
    for step, least in enumerate(STEPS):
        run_filter(undisturbed, {"min_bytes": least})
        run_filter(dataset, {"min_bytes": least})
        for _ in range(kills * (step + 1) // len(STEPS) - kills * step // len(STEPS)):
            process = begin(dataset)
            process.join(draw.random() * seconds)
            killed += process.is_alive()
            process.kill()
            process.join()
        started = time.monotonic()
        process = begin(dataset)
        process.join()
        assert process.exitcode == 0
        seconds = time.monotonic() - started
        run(undisturbed, sections)
        assert bytes_of(dataset) == bytes_of(undisturbed)
    return killed


def test_killed_at_random_moments_the_same_bytes_are_there_in_the_end(tmp_path: Path) -> None:
    images = shards_of(4, 10)
    images[2][7] = Image("http://h/2/7", b"rubbish", bytes=7002)
    sections = {"pixel": PIXEL | {"batch_size": 2}, "large": PIXEL | {"image_size": 256}}

    def begin(dataset: Dataset) -> Any:
        process = multiprocessing.get_context("fork").Process(target=run, args=(dataset, sections))
        process.start()
        return process

    assert killed_at_random(tmp_path, images, sections, 10, begin) >= 5


class Called:
    """The stage as a process of its own, with workers, by the command line."""

    def __init__(self, *arguments: object, cwd: Path) -> None:
        self.process = start(*arguments, cwd=cwd)

    def join(self, seconds: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=seconds)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        if self.is_alive():
            kill_hard(self.process)

    @property
    def exitcode(self) -> int | None:
        return self.process.returncode


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_20_times_with_workers_the_same_bytes_are_there_in_the_end(tmp_path: Path) -> None:
    sections = {"pixel": PIXEL, "grid": GRID | {"image_size": 224, "dtype": "int8"}}
    recipe = recipe_of(tmp_path, sections)

    def begin(dataset: Dataset) -> Called:
        return Called("extract", "--data", dataset.root, "--recipe", recipe, "--workers", 2, cwd=tmp_path)

    assert killed_at_random(tmp_path, shards_of(6, 40), sections, 20, begin) >= 10


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=150), st.integers(0, 99))
def test_merged_features_are_the_bytes_of_those_written_at_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, bool]], seed: int
) -> None:
    columns = {
        "boxes": Column("float32", (4,)),
        "classes": Column("int16"),
        "pooled": Column("float32", (5,), per_image=True),
        "half": Column("float16", (3,), tensor=True),
        "features": Column("int8", (7,), tensor=True),
    }
    described = {name: column.described for name, column in columns.items()}
    identity = {"kind": "made up", "columns": described}
    draw = np.random.default_rng(seed)
    images = [
        ImageFeatures(
            f"{at:09d}",
            n,
            {
                name: (draw.standard_normal(column.row_shape(n)) * 99).astype("int16" if name == "classes" else "f4")
                for name, column in columns.items()
            },
        )
        for at, (n, _) in enumerate(rows)
    ]
    folder = tmp_path_factory.mktemp("merged")
    for name, chosen in (("old", True), ("new", False)):
        part = [image for image, (_, old) in zip(images, rows, strict=True) if old is chosen]
        write_features(folder / f"{name}.parquet", part, columns, identity)
    write_features(folder / "whole.parquet", images, columns, identity)
    parts = (read_features(folder / f"{name}.parquet", identity) for name in ("old", "new"))
    assert merge_features(folder / "merged.parquet", parts) == len(rows)
    assert (folder / "merged.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
