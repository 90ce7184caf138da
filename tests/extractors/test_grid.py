"""Grid features are the CNN's own; weights that do not fit, or would run code, are refused."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch

from pipeline.errors import PairmillError
from pipeline.extractors.cnn import load_in_order
from pipeline.extractors.grid import GridExtractor
from pipeline.recipe import Grid
from pipeline.weights import Weights, find

SECTION = Grid(kind="grid", image_size=64, cells=2)


@pytest.fixture(scope="module")
def model() -> Any:
    """timm's model under its own names, filled by name and not by order from the package's file."""
    model = timm.create_model(SECTION.model, pretrained=False)
    load_in_order(model, find(SECTION).path)
    return model.eval()


def test_features_are_the_models_own(model: Any) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (50 + 40 * i, 80, 3), dtype=np.uint8) for i in range(3)]
    found = GridExtractor(SECTION, find(SECTION))(images)
    config = model.pretrained_cfg
    for image, features in zip(images, found, strict=True):
        how = cv2.INTER_AREA if min(image.shape[:2]) > 64 else cv2.INTER_CUBIC
        square = cv2.resize(image, (64, 64), interpolation=how).astype(np.float32) / 255
        tensor = torch.from_numpy((square - config["mean"]) / config["std"]).float().permute(2, 0, 1)[None]
        with torch.inference_mode():
            (own,) = model.forward_features(tensor)  # (channels, 2, 2)
        wanted = np.stack([own[:, row, column].numpy() for row in range(2) for column in range(2)])
        np.testing.assert_allclose(features["features"], wanted, atol=0.02, rtol=0.02)
        assert features["features"].dtype == np.float16


def test_the_trained_network_knows_a_zebra_crossing_from_noise(model: Any) -> None:
    stripes = np.zeros((224, 224, 3), np.float32)
    stripes[::16] = 1
    with torch.inference_mode():
        logits = [model(torch.from_numpy(x).permute(2, 0, 1)[None]) for x in (stripes, np.ones_like(stripes))]
    assert logits[0].argmax() != logits[1].argmax()
    assert logits[0].softmax(1).max() > 0.05  # weights in the wrong places say 1/1000 to everything


def weights(path: Path) -> Weights:
    return Weights(path, "0" * 64)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def test_weights_that_would_run_code_are_refused_and_do_not_run(tmp_path: Path) -> None:
    torch.save({"x": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    with pytest.raises(PairmillError, match=r"bomb\.pt"):
        GridExtractor(SECTION, weights(tmp_path / "bomb.pt"))
    assert not (tmp_path / "ran").exists()


def damaged(kind: str, model: Any) -> Any:
    state = dict(model.state_dict())
    names = list(state)
    if kind == "other order":
        return {f"x.{name}": state[name] for name in reversed(names)}
    if kind == "fewer":
        return {f"x.{name}": state[name] for name in names[:-1]}
    if kind == "same names, other shapes":
        return state | {names[0]: torch.zeros(1)}
    return {"list": [1, 2], "nested": {"state_dict": state}, "empty": {}}[kind]


@pytest.mark.parametrize("kind", ["other order", "fewer", "same names, other shapes", "list", "nested", "empty"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, model: Any, kind: str) -> None:
    torch.save(damaged(kind, model), tmp_path / "w.pt")
    with pytest.raises(PairmillError, match=r"w\.pt"):
        GridExtractor(SECTION, weights(tmp_path / "w.pt"))


@pytest.mark.parametrize(("name", "content"), [("w.pt", b""), ("w.pt", b"rubbish"), ("w.safetensors", b"rubbish")])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PairmillError, match="cannot load the weights"):
        GridExtractor(SECTION, weights(tmp_path / name))


def test_a_model_that_timm_does_not_have_is_refused() -> None:
    with pytest.raises(PairmillError, match="no_such_model"):
        GridExtractor(Grid(kind="grid", model="no_such_model"), find(SECTION))
