"""Region features against the detector's own forward pass and a slow suppression and pooling by hand."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, roi_align

from pipeline.errors import PairmillError
from pipeline.extractors.cnn import FeatureMaps
from pipeline.extractors.region import RegionExtractor, import_ultralytics
from pipeline.recipe import Region
from pipeline.store.atomic import file_sha256
from pipeline.weights import UNTRAINED, Weights, find

SIZE = 128


def section_of(**more: Any) -> Region:
    return Region(**{"kind": "region", "image_size": SIZE, "min_boxes": 5, "max_boxes": 9, "top_k": 4, **more})


def pictures() -> list[np.ndarray]:
    found = []
    for index, (height, width) in enumerate([(100, 160), (160, 90), (128, 128), (30, 40)]):
        noise = np.random.default_rng(index).integers(0, 256, (6, 7, 3), dtype=np.uint8)
        grain = np.random.default_rng(index).integers(0, 60, (height, width, 3), dtype=np.uint8)  # no two cells alike
        found.append(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) // 2 + grain)
    return found


@pytest.fixture(scope="module", params=["made up", pytest.param("untrained", marks=pytest.mark.slow), "real"])
def weights(request: pytest.FixtureRequest) -> Weights:
    if request.param == "untrained":
        return Weights(None, UNTRAINED)
    if request.param == "real":
        found = sorted(Path(os.environ.get("PAIRMILL_WEIGHTS") or "/nowhere").glob("yolo*.pt"))
        if not found:
            pytest.skip("PAIRMILL_WEIGHTS names no folder with a yolo*.pt")
        return Weights(found[0], file_sha256(found[0]))
    path = request.getfixturevalue("detector")
    return Weights(path, file_sha256(path))


def by_hand(extractor: RegionExtractor, image: np.ndarray, section: Region) -> dict[str, np.ndarray]:
    """One image, one box after the other."""
    height, width = image.shape[:2]
    scale = SIZE / max(height, width)
    h, w = round(height * scale), round(width * scale)
    canvas = np.full((SIZE, SIZE, 3), 114, np.uint8)
    canvas[:h, :w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    seen: list[Any] = []
    model = extractor.model
    handle = model.model[-1].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    with torch.inference_mode():
        out = model(torch.from_numpy(canvas).permute(2, 0, 1)[None].float() / 255)
    handle.remove()
    while not isinstance(out, torch.Tensor):
        out = out[0]
    classes = model.model[-1].nc
    candidates = []
    for x, y, bw, bh, *scores in out[0, : 4 + classes].T.tolist():
        box = [min(max(v, 0), side) for v, side in ((x - bw / 2, w), (y - bh / 2, h), (x + bw / 2, w), (y + bh / 2, h))]
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
            candidates.append((max(scores), int(np.argmax(scores)), box, scores))
    candidates = sorted(candidates, key=lambda c: -c[0])[:300]
    kept: list[Any] = []
    spare: list[Any] = []
    for candidate in candidates:
        rivals = [k for k in kept if k[1] == candidate[1]]
        covered = any(float(box_iou(torch.tensor([k[2]]), torch.tensor([candidate[2]]))) > section.iou for k in rivals)
        (spare if covered else kept).append(candidate)
    passing = sum(c[0] >= section.confidence for c in kept)
    wanted = min(max(passing + 1, section.min_boxes), section.max_boxes) - 1
    chosen = (kept + spare)[:wanted]
    boxes = [[0.0, 0.0, w, h], *(c[2] for c in chosen)]
    pooled = []
    for level, stride in zip(seen, model.model[-1].stride.tolist(), strict=True):
        rows = [
            roi_align(level, [torch.tensor([box], dtype=torch.float32)], 3, 1 / stride, 2, aligned=True).mean((2, 3))
            for box in boxes
        ]
        pooled.append(torch.cat(rows))
    shares = np.array([c[3] for c in chosen]) / np.array([[sum(c[3])] for c in chosen])
    return {
        "boxes": np.array(boxes) / [w, h, w, h],
        "classes": np.array([-1, *(c[1] for c in chosen)]),
        "confidences": np.array([1.0, *(c[0] for c in chosen)]),
        "topk_values": np.concatenate([np.zeros((1, 4)), -np.sort(-shares, 1)[:, :4]]),
        "features": torch.cat(pooled, 1).numpy(),
    }


def in_order_of_boxes(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    order = np.lexsort(np.column_stack([np.round(rows["boxes"], 2), rows["classes"]]).T)
    return {name: rows[name][order] for name in ("boxes", "classes", "confidences", "topk_values", "features")}


def test_rows_are_those_of_the_computation_by_hand(weights: Weights) -> None:
    section = section_of()
    extractor = RegionExtractor(section, weights)
    images = pictures()
    for image, found in zip(images, extractor(images), strict=True):
        wanted = by_hand(extractor, image, section)
        assert len(found["boxes"]) == len(wanted["boxes"])
        found, wanted = in_order_of_boxes(found), in_order_of_boxes(wanted)  # confidences may all but tie
        np.testing.assert_allclose(found["confidences"], wanted["confidences"], atol=1e-4)
        np.testing.assert_allclose(found["boxes"], wanted["boxes"], atol=2e-3)
        np.testing.assert_array_equal(found["classes"], wanted["classes"])
        np.testing.assert_allclose(found["topk_values"], wanted["topk_values"], atol=1e-3)
        np.testing.assert_allclose(found["features"], wanted["features"], atol=0.02, rtol=0.02)
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= 1).all()
        assert section.min_boxes <= len(found["boxes"]) <= section.max_boxes


def test_an_images_rows_do_not_depend_on_its_neighbours(weights: Weights) -> None:
    extractor = RegionExtractor(section_of(), weights)
    together = extractor(pictures())
    for image, found in zip(pictures(), together, strict=True):
        (alone,) = extractor([image])
        np.testing.assert_allclose(alone["boxes"], found["boxes"], atol=1e-3)
        np.testing.assert_allclose(alone["features"], found["features"], atol=0.02, rtol=0.02)


@pytest.mark.slow
def test_the_untrained_detector_is_the_same_every_time() -> None:
    first, second = (RegionExtractor(section_of(), Weights(None, UNTRAINED)).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def refused(path: Path) -> str:
    with pytest.raises(PairmillError) as error:
        RegionExtractor(section_of(), Weights(path, "0" * 64))
    assert str(path) in str(error.value)
    return str(error.value)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def test_a_detector_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    import_ultralytics()
    torch.save({"model": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    refused(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_file_that_is_no_detector_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    refused(tmp_path / "x.pt")


def test_an_unknown_architecture_without_weights_is_refused() -> None:
    with pytest.raises(PairmillError, match=r"absent\.pt"):
        RegionExtractor(section_of(weights=["sub/absent.pt"]), Weights(None, UNTRAINED))


def test_features_pooled_from_a_cnn_are_those_of_its_map_at_the_boxes(detector: Path) -> None:
    section = section_of(cnn={"model": "tf_efficientnet_lite0", "image_size": 160})
    assert section.cnn is not None
    weights = Weights(detector, file_sha256(detector), find(section.cnn))
    extractor, maps = RegionExtractor(section, weights), FeatureMaps(section.cnn, find(section.cnn))
    for image, found in zip(pictures(), extractor(pictures()), strict=True):
        pixels = torch.from_numpy(found["boxes"]) * 160
        wanted = roi_align(maps([image]), [pixels], 3, 1 / 32, 2, aligned=True).mean((2, 3)).numpy()
        np.testing.assert_allclose(found["features"], wanted, atol=0.02, rtol=0.02)
    assert extractor.identity["pooled_from_sha256"] == find(section.cnn).sha256
    assert weights.digests != Weights(detector, weights.sha256).digests
