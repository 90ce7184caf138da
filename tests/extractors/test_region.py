"""Region rows are those of a direct, slow computation with the detector, whatever the pictures and the numbers."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from slow_regions import regions, square_of
from small_detectors import architecture, checkpoint
from torchvision.ops import roi_align

from pipeline.errors import PairmillError
from pipeline.extractors.cnn import FeatureMaps
from pipeline.extractors.detector import Candidates
from pipeline.extractors.region import RegionExtractor
from pipeline.recipe import Region
from pipeline.store.atomic import file_sha256
from pipeline.store.features import FeatureWriter, ImageFeatures, NotFiniteError
from pipeline.weights import UNTRAINED, Weights, find

SIZE = 96
CPU = torch.device("cpu")


def section_of(**more: Any) -> Region:
    return Region(**{"kind": "region", "image_size": SIZE, "min_boxes": 5, "max_boxes": 9, "top_k": 4, **more})


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Blots with grain, so that no two places are alike."""
    random = np.random.default_rng(seed)
    blots = cv2.resize(
        random.integers(0, 256, (6, 7, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return blots // 2 + random.integers(0, 60, (height, width, 3), dtype=np.uint8)


def pictures(number: int) -> list[np.ndarray]:
    sides = np.random.default_rng(0).integers(60, 260, (number, 2)).tolist()
    return [picture(seed, height, width) for seed, (height, width) in enumerate(sides)]


def extracted(extractor: RegionExtractor, images: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    return extractor([extractor.prepare(image) for image in images])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("detectors")


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    return checkpoint(folder, "segmentation")


def extractor_of(path: Path, **more: Any) -> RegionExtractor:
    return RegionExtractor(section_of(**more), Weights(path, file_sha256(path)), CPU)


def in_order_of_boxes(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Confidences may all but tie, and rounding then says which comes first."""
    order = np.lexsort(np.column_stack([np.round(rows["boxes"], 2), rows["classes"]]).T)
    return {name: values[order] for name, values in rows.items()}


def agree_with_the_slow_computation(
    extractor: RegionExtractor, path: Path, images: list[np.ndarray], fewest: int = 0
) -> int:
    """How many of the images were compared: those in which no decision hangs on a rounding."""
    from ultralytics.nn.tasks import load_checkpoint

    model, _ = load_checkpoint(str(path))
    section, compared = extractor.section, 0
    for start in range(0, len(images), 8):
        batch = images[start : start + 8]
        for image, found in zip(batch, extracted(extractor, batch), strict=True):
            wanted, narrowest = regions(model, image, section)
            if narrowest < 1e-5:
                continue
            compared += 1
            assert len(found["boxes"]) == len(wanted["boxes"])
            found, wanted = in_order_of_boxes(found), in_order_of_boxes(wanted)
            np.testing.assert_array_equal(found["classes"], wanted["classes"])
            np.testing.assert_allclose(found["boxes"], wanted["boxes"], atol=1e-3)
            np.testing.assert_allclose(found["confidences"], wanted["confidences"], atol=1e-3)
            np.testing.assert_allclose(found["topk_values"], wanted["topk_values"], atol=1e-3)
            apart = -np.diff(wanted["topk_values"], axis=1, append=0) > 1e-3
            np.testing.assert_array_equal(found["topk_ids"][apart], wanted["topk_ids"][apart])
            np.testing.assert_allclose(found["features"], wanted["features"], atol=0.02, rtol=0.02)
            if "levels" in found:
                np.testing.assert_array_equal(found["levels"], wanted["levels"])
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= 1).all()
            assert (fewest or section.min_boxes) <= len(found["boxes"]) <= section.max_boxes
    return compared


def test_fifty_images_are_those_of_the_slow_computation(small: Path) -> None:
    extractor = extractor_of(small, max_boxes=14, confidence=0.55, iou=0.8)
    assert agree_with_the_slow_computation(extractor, small, pictures(50)) >= 45
    numbers = {len(row["boxes"]) for row in extracted(extractor, pictures(50))}
    assert len(numbers) > 3  # not all filled up to the least, not all cut to the most


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("yolo", {"levels": "one", "iou": 0.3}),
        ("end to end", {"confidence": 0.9, "dtype": "int8"}),
        ("fused end to end", {"min_boxes": 30, "max_boxes": 40, "iou": 0.1}),
        ("rt-detr", {"levels": "one"}),
    ],
)
def test_so_are_those_of_other_heads_and_settings(folder: Path, kind: str, more: dict[str, Any]) -> None:
    path = checkpoint(folder, kind)
    assert agree_with_the_slow_computation(extractor_of(path, **more), path, pictures(10)) >= 8


@pytest.mark.parametrize("name", ["detector", "PAIRMILL_WEIGHTS"])
def test_so_are_those_of_a_whole_yolo(name: str, request: pytest.FixtureRequest) -> None:
    """The made-up one of the other tests; and what a developer has at hand."""
    found = sorted(Path(os.environ.get(name) or "/nowhere").glob("yolo*.pt")) if name.isupper() else []
    if name.isupper() and not found:
        pytest.skip("PAIRMILL_WEIGHTS names no folder with a yolo*.pt")
    path = found[0] if found else request.getfixturevalue("detector")
    assert agree_with_the_slow_computation(extractor_of(path, confidence=0.05), path, pictures(4)) >= 3


@pytest.mark.parametrize("kind", ["segmentation", "rt-detr"])
def test_a_prepared_picture_is_resized_into_the_grey_square(folder: Path, small: Path, kind: str) -> None:
    extractor = extractor_of(small if kind == "segmentation" else checkpoint(folder, kind))
    for image in [*pictures(3), picture(0, 1, 1), picture(1, 1, 20_000), picture(2, 300, 2)]:
        square, width, height = square_of(image, SIZE, stretched=kind == "rt-detr")
        prepared = extractor.prepare(image)
        np.testing.assert_array_equal(prepared.square, square)
        assert prepared.extent == (width, height)
        assert prepared.square.dtype == np.uint8


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_the_same_batch_gives_the_same_bytes_whatever_came_between(small: Path) -> None:
    extractor, images = extractor_of(small), pictures(6)
    first = extracted(extractor, images)
    kept = [{name: values.copy() for name, values in row.items()} for row in first]
    extracted(extractor, images[::-1])
    extracted(extractor, images[:2])
    with ThreadPoolExecutor(4) as threads:
        again = extractor(list(threads.map(extractor.prepare, images)))
    for row, before, after in zip(first, kept, again, strict=True):
        assert same(row, before)
        assert same(row, after)


def test_an_images_rows_do_not_depend_on_its_neighbours(small: Path) -> None:
    extractor = extractor_of(small)
    for image, found in zip(pictures(6), extracted(extractor, pictures(6)), strict=True):
        (alone,) = extracted(extractor, [image])
        np.testing.assert_allclose(alone["boxes"], found["boxes"], atol=1e-4)
        np.testing.assert_allclose(alone["features"], found["features"], atol=0.01, rtol=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (2, 2), (64, 64)])
@pytest.mark.parametrize("grey", [0, 114, 255])
def test_blank_pictures_of_any_shape_have_regions(small: Path, shape: tuple[int, int], grey: int) -> None:
    extractor = extractor_of(small, confidence=1.0)
    for image in (np.full((*shape, 3), grey, np.uint8), picture(0, *shape)):
        (row,) = extracted(extractor, [image])
        assert len(row["boxes"]) == 5
        assert row["boxes"][0].tolist() == [0, 0, 1, 1]
        assert (row["boxes"] >= 0).all()
        assert (row["boxes"] <= 1).all()
        assert (row["boxes"][:, 2:] > row["boxes"][:, :2]).all()
        assert all(np.isfinite(values).all() for values in row.values())
        assert np.abs(row["features"]).max() > 0


def test_a_detector_with_fewer_candidates_gives_what_it_has(folder: Path) -> None:
    path = checkpoint(folder, "rt-detr")
    extractor = extractor_of(path, min_boxes=80, max_boxes=100)
    assert agree_with_the_slow_computation(extractor, path, pictures(3), fewest=10) >= 2


def test_no_candidate_in_the_picture_leaves_the_whole_image(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = extractor_of(small)
    own = extractor.detector.model

    def nowhere(pixels: torch.Tensor) -> Candidates:
        found = own(pixels)
        return replace(found, boxes=torch.full_like(found.boxes, -5.0))

    monkeypatch.setattr(extractor.detector, "model", nowhere)
    (row,) = extracted(extractor, pictures(1))
    assert row["classes"].tolist() == [-1]
    assert row["confidences"].tolist() == [1]
    assert row["topk_values"].tolist() == [[0, 0, 0, 0]]
    assert row["features"].shape == (1, 72)


@pytest.mark.parametrize("part", ["boxes", "logits", "neck"])
@pytest.mark.parametrize("levels", ["all", "one"])
@pytest.mark.parametrize("least", [1, 5])
def test_nan_reaches_the_writer_and_no_other_image(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, levels: str, least: int
) -> None:
    extractor = extractor_of(small, levels=levels, min_boxes=least, confidence=1.0 if least > 1 else 0.5)
    own, images = extractor.detector.model, pictures(3)
    clean = extracted(extractor, images)

    def spoilt(pixels: torch.Tensor) -> Candidates:
        found = own(pixels)
        tensors = found.neck if part == "neck" else [getattr(found, part)]
        for tensor in tensors:
            tensor[1] = torch.nan
        return found

    monkeypatch.setattr(extractor.detector, "model", spoilt)
    rows = extracted(extractor, images)
    assert same(rows[0], clean[0])
    assert same(rows[2], clean[2])
    with FeatureWriter(tmp_path / "x.parquet", extractor.columns, {}) as writer:
        for index, row in enumerate(rows):
            features = ImageFeatures(f"{index:09d}", len(row["boxes"]), row)
            if index == 1:
                with pytest.raises(NotFiniteError):
                    writer.add(features)
            else:
                writer.add(features)
        assert writer.rows == 2


def test_the_identity_says_what_made_the_features(small: Path, folder: Path) -> None:
    extractor = extractor_of(small)
    assert extractor.identity == {
        "model": "segmentation.pt",
        "trained": True,
        "classes": [f"thing {index}" for index in range(7)],
        "neck": {"channels": [16, 24, 32], "strides": [8, 16, 32]},
    }
    assert extractor.columns["features"].shape == (72,)
    one = extractor_of(small, levels="one", dtype="int8")
    assert one.columns["features"].shape == (32,)
    assert one.columns["features"].dtype == "int8"
    (row,) = extracted(one, pictures(1))
    assert row["features"].dtype == np.float32  # the writer quantises
    path = architecture(folder, "yolo")
    section = section_of(weights=(str(path),), top_k=99)
    untrained = RegionExtractor(section, find(section), CPU)
    assert untrained.identity["architecture_sha256"] == file_sha256(path)
    assert untrained.identity["trained"] is False
    assert untrained.identity["model"] == "yolo.yaml"
    assert untrained.columns["topk_ids"].shape == (7,)


def test_features_pooled_from_a_cnn_are_those_of_its_map_at_the_boxes(small: Path) -> None:
    section = section_of(cnn={"model": "tf_efficientnet_lite0", "image_size": 160})
    assert section.cnn is not None
    weights = Weights(small, file_sha256(small), find(section.cnn))
    assert weights.cnn is not None
    extractor, maps = RegionExtractor(section, weights, CPU), FeatureMaps(section.cnn, weights.cnn, CPU)
    for image, found in zip(pictures(4), extracted(extractor, pictures(4)), strict=True):
        pixels = torch.from_numpy(found["boxes"]) * 160
        level = maps([maps.prepare(image)])
        wanted = roi_align(level, [pixels], 3, 1 / 32, 2, aligned=True).mean((2, 3)).numpy()
        np.testing.assert_allclose(found["features"], wanted, atol=0.02, rtol=0.02)
    assert extractor.identity["pooled_from_sha256"] == weights.cnn.sha256
    assert weights.digests != Weights(small, weights.sha256).digests


def test_a_cnn_has_no_levels_to_choose_from() -> None:
    with pytest.raises(ValueError, match="one map"):
        section_of(levels="one", cnn={})


@pytest.mark.slow
def test_the_untrained_detector_is_the_same_every_time() -> None:
    section = section_of(weights=("yolo11n.pt",))
    first, second = (
        RegionExtractor(section, Weights(None, UNTRAINED), CPU).detector.model.state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_error_names_the_file_that_is_no_detector(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"rubbish")
    with pytest.raises(PairmillError, match=r"x\.pt"):
        extractor_of(tmp_path / "x.pt")
