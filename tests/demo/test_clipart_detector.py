"""The detector of our own: what it is trained on, a run in miniature, and the weights that ship."""

import csv
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from pipeline.demo import openclipart
from pipeline.demo.detector import WEIGHTS
from pipeline.demo.detector.__main__ import main
from pipeline.demo.detector.composing import (
    HELD_OUT,
    LEFT_OUT,
    MIN_PICTURES,
    MIN_SIDE,
    MOST_OBJECTS,
    Composition,
    Cutout,
    backdrop,
    by_label,
    compose,
    read_cutouts,
)
from pipeline.demo.detector.training import FILES, Settings, train
from pipeline.errors import PairmillError
from pipeline.extractors.choosing import choose
from pipeline.extractors.detector import Detector
from pipeline.extractors.region import RegionExtractor
from pipeline.recipe import Region
from pipeline.store.atomic import file_sha256
from pipeline.weights import UNTRAINED, Weights

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def ring(colour: tuple[int, int, int], side: int, height: int = 0) -> np.ndarray:
    """A drawing with a hole and a transparent ground: (height, side, 4) BGRA."""
    pixels = np.zeros((height or side, side, 4), np.uint8)
    axes = side // 2 - 3, (height or side) // 2 - 3
    cv2.ellipse(pixels, (side // 2, (height or side) // 2), axes, 0, 0, 360, (*colour, 255), -1)
    cv2.circle(pixels, (side // 2, (height or side) // 2), side // 8, (0, 0, 0, 0), -1)
    return pixels


def flat_cutouts(red: str = "") -> dict[int, list[Cutout]]:
    """Of 32 colours without red; of the one named `red`, with all of it. By label, of three."""
    cutouts: dict[int, list[Cutout]] = {}
    for index in range(32):
        name, label = f"{index}.png", index % 3
        colour = 40 + 30 * (index % 8), 40 + 60 * (index // 8), 255 if name == red else 0
        cutouts.setdefault(label, []).append(Cutout(name, label, False, ring(colour, 220, 120 + 3 * index)))
    return cutouts


CUTOUTS = flat_cutouts()


def composed(seed: int, size: int = 128) -> Composition:
    random = np.random.default_rng(seed)
    return compose(CUTOUTS, backdrop(size, random), random)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([64, 96, 256]))
def test_a_composition_hangs_on_its_seed_alone_and_is_sound(seed: int, size: int) -> None:
    one, same, other = composed(seed, size), composed(seed, size), composed(seed + 1, size)
    for field in ("picture", "boxes", "labels", "names"):
        assert np.array_equal(getattr(one, field), getattr(same, field))
    assert not np.array_equal(one.picture, other.picture)
    assert one.picture.shape == (size, size, 3)
    assert one.picture.dtype == np.uint8
    assert one.boxes.shape == (len(one.labels), 4)
    assert len(one.labels) == len(one.names) <= MOST_OBJECTS
    assert set(one.labels.tolist()) <= set(CUTOUTS)
    assert all(
        name in {cutout.name for cutout in CUTOUTS[label]} for name, label in zip(one.names, one.labels, strict=True)
    )
    assert (one.boxes >= 0).all()
    assert (one.boxes <= 1).all()
    assert ((one.boxes[:, 2:] - one.boxes[:, :2]) * size >= MIN_SIDE - 1e-3).all()


def test_boxes_are_the_extents_of_what_can_be_seen() -> None:
    """Composed again with one cutout in red, on black: how red a pixel is says how much of that cutout it shows."""
    size = 160
    black = np.zeros((size, size, 3), np.uint8)
    reddened = {cutout.name: flat_cutouts(cutout.name) for group in CUTOUTS.values() for cutout in group}
    off: list[float] = []
    partly_hidden = 0
    for seed in range(100):
        one = compose(CUTOUTS, black, np.random.default_rng(seed))
        assert not black.any()
        for index, name in enumerate(one.names):
            again = compose(reddened[name], black, np.random.default_rng(seed))
            # The same cutout twice cannot be told apart; and red may have been what another place lacked in contrast.
            if one.names.count(name) > 1 or again.names != one.names or not np.array_equal(again.boxes, one.boxes):
                continue
            rows, columns = np.nonzero(again.picture[..., 2] > 127)
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            off.append(np.abs(seen - one.boxes[index] * size).max())
            partly_hidden += len(rows) < 0.6 * (seen[2] - seen[0]) * (seen[3] - seen[1])
    assert len(off) > 250
    # Where two edges blend into a third colour, more than half of a pixel need not be red.
    assert np.mean(np.array(off) < 1e-3) > 0.9
    assert np.mean(np.array(off) > 2) < 0.01
    assert partly_hidden > 0.1 * len(off)  # else boxes of what is hidden would pass


def test_what_could_not_be_seen_is_not_pasted() -> None:
    white = np.full((128, 128, 3), 255, np.uint8)
    ghost = {0: [Cutout("ghost.png", 0, False, ring((252, 252, 252), 80))]}
    for seed in range(20):
        one = compose(ghost, white, np.random.default_rng(seed))
        assert not len(one.labels)
        assert np.array_equal(one.picture, white)


def test_rare_labels_are_met_more_often_than_their_share() -> None:
    many = [Cutout(f"{index}.png", 0, False, ring((200, 80, 80), 60)) for index in range(99)]
    rare = [Cutout("rare.png", 1, False, ring((80, 200, 80), 60))]
    labels = [
        label
        for seed in range(120)
        for label in compose(
            {0: many, 1: rare}, np.zeros((96, 96, 3), np.uint8), np.random.default_rng(seed)
        ).labels.tolist()
    ]
    expected = len(labels) / (1 + np.sqrt(99))
    assert expected / 2 < labels.count(1) < expected * 2


# ---------------------------------------------------------------- the library's folders


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def fill(folder: Path, number: int, first: int) -> None:
    for index in range(number):
        colour = tuple(int(part) for part in np.random.default_rng(first + index).integers(30, 225, 3))
        write_png(folder / f"deep{index % 2}" / f"{index}.png", ring(colour, 40 + index))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages as `openclipart.get` unpacks them, so that it has nothing to fetch."""
    folder = tmp_path_factory.mktemp("source")
    png = folder / "root/usr/share/openclipart/png"
    fill(png / "food", MIN_PICTURES + 12, 0)
    fill(png / "odd_things", MIN_PICTURES + 12, 1000)
    fill(png / "few", MIN_PICTURES - 10, 2000)
    for name in LEFT_OUT:
        fill(png / name, MIN_PICTURES + 12, 3000)
    food = png / "food/deep0"
    write_png(food / "opaque.png", np.full((50, 50, 3), 90, np.uint8))
    write_png(food / "no_ground.png", np.full((50, 50, 4), 255, np.uint8))
    write_png(food / "grey.png", np.full((50, 50), 90, np.uint8))
    write_png(food / "deep.png", np.full((50, 50, 4), 40_000, np.uint16))
    write_png(food / "empty.png", np.zeros((50, 50, 4), np.uint8))
    hairline = np.zeros((300, 300, 4), np.uint8)
    cv2.line(hairline, (0, 0), (299, 299), (0, 0, 0, 255), 1)
    write_png(food / "hairline.png", hairline)
    (food / "truncated.png").write_bytes((food / "0.png").read_bytes()[:60])
    (food / "garbage.png").write_bytes(b"no picture")
    (food / "nothing.png").touch()
    (food / "copy.png").write_bytes((food / "0.png").read_bytes())
    for index in range(0, 40, 2):
        (png / f"odd_things/deep0/of_food_{index}.png").write_bytes((food / f"{index}.png").read_bytes())
    return folder


def test_classes_are_the_folders_with_enough_usable_pictures(source: Path) -> None:
    classes, cutouts = read_cutouts(openclipart.get(source).png)
    assert classes == ["food", "odd things"]
    names = [cutout.name for cutout in cutouts if cutout.label == 0]
    usable = {f"food/deep{index % 2}/{index}.png" for index in range(MIN_PICTURES + 12)}
    # Of two copies whichever comes first stays.
    assert {name.replace("copy.png", "0.png") for name in names} == usable
    assert len(names) == len(usable)
    assert sum(cutout.label == 1 for cutout in cutouts) == MIN_PICTURES + 12 + 20
    for cutout in cutouts:
        alpha = cutout.pixels[..., 3]
        for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
            assert (edge > 127).any()
        assert (cutout.pixels[..., :3] <= alpha[..., None]).all()  # premultiplied


def test_no_held_out_picture_and_no_copy_of_one_is_trained_on(source: Path) -> None:
    png = openclipart.get(source).png
    _, cutouts = read_cutouts(png)
    sides = [by_label(cutouts, held_out) for held_out in (False, True)]
    contents: list[set[bytes]] = []
    for side in sides:
        random = np.random.default_rng(1)
        names = {name for _ in range(150) for name in compose(side, backdrop(96, random), random).names}
        assert len(names) > 15
        contents.append({(png / name).read_bytes() for name in names})
    assert not contents[0] & contents[1]
    share = sum(len(group) for group in sides[1].values()) / len(cutouts)
    assert HELD_OUT / 2 < share < HELD_OUT * 2
    again = read_cutouts(png)[1]
    assert [(cutout.name, cutout.held_out) for cutout in again] == [
        (cutout.name, cutout.held_out) for cutout in cutouts
    ]


def test_a_library_without_cutouts_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "few", 3, 0)
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(PairmillError, match=str(folder)):
            read_cutouts(folder)


# ---------------------------------------------------------------- the training


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files of a run in miniature."""
    folder = tmp_path_factory.mktemp("run")
    small = {
        "pictures": 12,
        "held-out-pictures": 6,
        "per-class": 40,
        "epochs": 1,
        "image-size": 64,
        "batch": 4,
        "seed": 3,
    }
    options = [f"--{name}={value}" for name, value in small.items()]
    main([*options, "--source", str(source), "--work", str(folder / "work"), "--target", str(folder / "target")])
    return folder / "target"


def assert_tells_nothing_of_its_machine(weights: Path) -> None:
    with zipfile.ZipFile(weights) as archive:
        for member in archive.infolist():
            content = archive.read(member)
            if not member.filename.split("/", 1)[1].startswith("data/"):  # the tensors may spell anything
                for leak in (b"/home/", b"/root", b"/work", b"/tmp", b"/usr/", b"site-packages", str(ROOT).encode()):
                    assert leak not in content, (member.filename, leak)


def test_a_small_run_writes_weights_that_the_region_extractor_takes(trained: Path) -> None:
    weights, log, account = (trained / name for name in FILES)
    said = json.loads(account.read_text())
    assert sorted(path.name for path in trained.iterdir()) == sorted(FILES)
    assert said["classes"] == ["few", "food", "odd things"]  # so few suffice where --per-class asks for no more
    assert said["weights"] == {"file": "clipart.pt", "sha256": file_sha256(weights), "bytes": weights.stat().st_size}
    assert said["settings"]["seed"] == 3
    assert said["epochs_done"] == 1
    assert 0 <= said["mAP50-95"] <= said["mAP50"] <= 1
    assert all(sum(side[name] for side in said["cutouts"].values()) == 40 for name in said["classes"])
    assert str(trained.parent) not in account.read_text() + log.read_text()
    rows = list(csv.DictReader(log.open()))
    assert len(rows) == 1
    assert {"epoch", "train/box_loss", "metrics/mAP50(B)", "metrics/mAP50-95(B)"} <= set(rows[0])
    assert_tells_nothing_of_its_machine(weights)

    section = Region(kind="region", image_size=64, min_boxes=3, max_boxes=5, top_k=3)
    extractor = RegionExtractor(section, Weights(weights, file_sha256(weights)), CPU)
    assert extractor.identity["classes"] == said["classes"]
    (row,) = extractor([extractor.prepare(np.full((40, 60, 3), 200, np.uint8))])
    assert 3 <= len(row["boxes"]) <= 5
    assert all(np.isfinite(values).all() for values in row.values())


def test_a_folder_of_something_else_is_not_emptied(source: Path, tmp_path: Path) -> None:
    kept = tmp_path / "images/holiday.jpg"
    kept.parent.mkdir()
    kept.write_bytes(b"precious")
    with pytest.raises(PairmillError, match="holds something else"):
        train(source, tmp_path, tmp_path / "target", Settings(pictures=1))
    assert kept.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "option", ["--image-size=100", "--pictures=0", "--epochs=many", "--hours=nan", "--seed=-1", "--batch=1"]
)
def test_a_senseless_option_is_refused_before_anything_is_done(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option, "--work", str(tmp_path / "work")])
    assert ended.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_what_a_user_can_cause_has_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file, not a folder")
    command = [sys.executable, "-m", "pipeline.demo.detector", "--work", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "work") in done.stderr


# ---------------------------------------------------------------- what ships


SAID = WEIGHTS.with_suffix(".json")


def shipped() -> Weights:
    return Weights(WEIGHTS, file_sha256(WEIGHTS))


def test_the_shipped_files_belong_together() -> None:
    said = json.loads(SAID.read_text())
    assert said["weights"] == {"file": WEIGHTS.name, "sha256": shipped().sha256, "bytes": WEIGHTS.stat().st_size}
    assert WEIGHTS.stat().st_size < 6_000_000
    detector = Detector(shipped(), said["settings"]["architecture"], said["settings"]["image_size"], CPU)
    assert detector.classes == said["classes"]
    assert not set(said["classes"]) & set(LEFT_OUT)
    assert_tells_nothing_of_its_machine(WEIGHTS)
    for name in (SAID, WEIGHTS.with_suffix(".csv")):
        assert not any(leak in name.read_text() for leak in ("/home/", "/root", "/work", "/tmp"))
    rows = list(csv.DictReader(WEIGHTS.with_suffix(".csv").open()))
    assert len(rows) == said["epochs_done"]
    # The best epoch's average is what is shipped; saved in fp16, it is validated once more.
    assert max(float(row["metrics/mAP50-95(B)"]) for row in rows) == pytest.approx(said["mAP50-95"], abs=0.02)


def recall(detector: Detector, pictures: list[Composition], *, with_class: bool) -> float:
    """Of the objects in `pictures`, the part that one of the ten best boxes meets at an IoU of a half."""
    size = detector.size
    pixels = torch.stack([torch.from_numpy(one.picture[..., ::-1].copy()).permute(2, 0, 1) for one in pictures])
    extents = torch.tensor([[size, size]] * len(pictures), dtype=torch.float32)
    chosen = choose(detector(pixels.float() / 255), extents, least=10, most=10, confidence=0.1, iou=0.6)
    met = total = 0
    for index, one in enumerate(pictures):
        n = int(chosen.n[index])
        overlap = box_iou(torch.from_numpy(one.boxes * size), chosen.boxes[index, :n]) >= 0.5
        if with_class:
            overlap &= torch.from_numpy(one.labels)[:, None] == chosen.classes[index, None, :n]
        met += int(overlap.any(1).sum())
        total += len(one.labels)
    return met / total


def test_the_shipped_weights_find_shapes_that_nobody_drew_for_them() -> None:
    pictures = [composed(seed, 256) for seed in range(40)]
    found = recall(Detector(shipped(), "yolo11n.yaml", 256, CPU), pictures, with_class=False)
    blind = recall(Detector(Weights(None, UNTRAINED), "yolo11n.yaml", 256, CPU), pictures, with_class=False)
    assert found > 0.5
    assert found > 3 * blind


@pytest.mark.slow  # hundreds of PNGs to decode
def test_the_shipped_weights_find_and_name_held_out_clip_art() -> None:
    try:
        png = openclipart.get(ROOT / "data" / "openclipart").png
    except PairmillError as error:
        pytest.skip(f"the Open Clip Art Library is not to be had here: {error}")
    said = json.loads(SAID.read_text())
    names, cutouts = read_cutouts(png, at_most=40)
    number = {label: said["classes"].index(name) for label, name in enumerate(names) if name in said["classes"]}
    unseen: dict[int, list[Cutout]] = {}
    for label, group in by_label(cutouts, held_out=True).items():
        if label in number:
            unseen[number[label]] = [Cutout(one.name, number[label], True, one.pixels) for one in group]
    assert len(unseen) > len(said["classes"]) / 2
    pictures = []
    for seed in range(100):
        random = np.random.default_rng([99, seed])
        pictures.append(compose(unseen, backdrop(256, random), random))
    detector = Detector(shipped(), "yolo11n.yaml", 256, CPU)
    untrained = Detector(Weights(None, UNTRAINED), "yolo11n.yaml", 256, CPU)
    assert recall(untrained, pictures, with_class=True) < 0.02
    assert recall(detector, pictures, with_class=False) > 0.6
    assert recall(detector, pictures, with_class=True) > 0.2
