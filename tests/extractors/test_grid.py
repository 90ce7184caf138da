"""Grid features are the library's own maps, whichever library it is; weights that do not fit are refused."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.errors import PairmillError
from pipeline.extractors.cnn import FeatureMaps
from pipeline.extractors.grid import GridExtractor
from pipeline.extractors.state import load_in_order
from pipeline.recipe import Grid
from pipeline.store.atomic import file_sha256
from pipeline.weights import Weights, find

CPU = torch.device("cpu")
SECTION = Grid(kind="grid", image_size=64, cells=2)
TINY_RESNET = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def pictures() -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (50 + 40 * i, 80, 3), dtype=np.uint8) for i in range(3)]


def run(extractor: GridExtractor, images: list[np.ndarray]) -> list[np.ndarray]:
    return [row["features"] for row in extractor([extractor.prepare(image) for image in images])]


def normalised(image: np.ndarray, side: int, mean: Any, std: Any) -> torch.Tensor:
    how = cv2.INTER_AREA if min(image.shape[:2]) > side else cv2.INTER_CUBIC
    square = cv2.resize(image, (side, side), interpolation=how).astype(np.float64) / 255
    return torch.from_numpy((square - np.array(mean)) / np.array(std)).float().permute(2, 0, 1)[None]


def alive(model: torch.nn.Module) -> torch.nn.Module:
    """With statistics and scales that no initialisation has: a normalisation folded wrongly must show."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def of_timm(folder: Path, name: str) -> tuple[Grid, Any]:
    model: Any = alive(timm.create_model(name, pretrained=False))
    torch.save(model.state_dict(), folder / "w.pt")
    config = model.pretrained_cfg

    def maps(image: np.ndarray) -> torch.Tensor:
        return model.forward_features(normalised(image, 64, config["mean"], config["std"]))

    return Grid(kind="grid", model=name, weights=str(folder / "w.pt"), image_size=64, cells=2), maps


def of_torchvision(folder: Path, name: str) -> tuple[Grid, Any]:
    model: Any = alive(torchvision.models.get_model(name, weights=None))
    torch.save(model.state_dict(), folder / "w.pt")
    before: list[torch.Tensor] = []
    if hasattr(model, "avgpool"):
        model.avgpool.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0].clone()))

    def maps(image: np.ndarray) -> torch.Tensor:
        tensor = normalised(image, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        if not hasattr(model, "avgpool"):
            return model.features(tensor)
        model(tensor)
        return before.pop()

    weights = str(folder / "w.pt")
    return Grid(kind="grid", library="torchvision", model=name, weights=weights, image_size=64, cells=2), maps


def of_open_clip(folder: Path, name: str) -> tuple[Grid, Any]:
    (folder / f"{name}.json").write_text(json.dumps(TINY_RESNET))
    open_clip.add_model_config(folder / f"{name}.json")
    model: Any = alive(open_clip.create_model(name))
    torch.save(model.state_dict(), folder / "w.pt")

    def maps(image: np.ndarray) -> torch.Tensor:
        tensor = normalised(image, 64, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        (last,) = model.visual.forward_intermediates(tensor, indices=1, intermediates_only=True)["image_intermediates"]
        return last

    architecture, weights = str(folder / f"{name}.json"), str(folder / "w.pt")
    section = Grid(kind="grid", library="open_clip", model=architecture, weights=weights, image_size=64, cells=2)
    return section, maps


@pytest.mark.parametrize(
    ("library", "name"),
    [
        (of_timm, "tf_efficientnet_lite0"),
        (of_timm, "resnet18"),
        (of_timm, "densenet121"),
        (of_torchvision, "resnet18"),
        (of_torchvision, "mobilenet_v2"),
        (of_torchvision, "efficientnet_b0"),
        (of_open_clip, "tiny-resnet"),
    ],
)
def test_features_are_the_librarys_own_maps(tmp_path: Path, library: Any, name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        section, maps = library(tmp_path, name)
    extractor = GridExtractor(section, find(section), CPU)
    assert extractor.columns["features"].shape == (extractor.maps.channels,)
    for image, found in zip(pictures(), run(extractor, pictures()), strict=True):
        with torch.inference_mode():
            own = adaptive_avg_pool2d(maps(image), 2)[0].flatten(1).T.numpy()
        assert found.shape == own.shape
        assert np.ptp(own) > 0.1
        np.testing.assert_allclose(found, own, atol=1e-3 * np.abs(own).max())


@pytest.fixture(scope="module")
def extractor() -> GridExtractor:
    return GridExtractor(SECTION, find(SECTION), CPU)


def test_cells_are_means_over_their_part_of_the_map_row_by_row(extractor: GridExtractor) -> None:
    section = Grid(kind="grid", image_size=128, cells=2)
    four = GridExtractor(section, find(section), CPU)
    image = pictures()[1]
    maps = four.maps([four.prepare(image)])[0].numpy()
    assert maps.shape[1:] == (4, 4)
    (found,) = run(four, [image])
    wanted = [maps[:, y : y + 2, x : x + 2].mean((1, 2)) for y in (0, 2) for x in (0, 2)]
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (64, 64)])
def test_pictures_of_any_shape_have_features(extractor: GridExtractor, shape: tuple[int, int]) -> None:
    (found,) = run(extractor, [np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)])
    assert found.shape == (4, extractor.maps.channels)
    assert np.isfinite(found).all()


def test_a_picture_alone_is_as_in_a_batch_and_the_same_batch_gives_the_same_bytes(extractor: GridExtractor) -> None:
    together = run(extractor, pictures())
    for image, found in zip(pictures(), together, strict=True):
        np.testing.assert_allclose(run(extractor, [image])[0], found, atol=1e-4)
    assert [row.tobytes() for row in run(extractor, pictures())] == [row.tobytes() for row in together]


def test_preparing_changes_no_picture(extractor: GridExtractor) -> None:
    image = pictures()[0]
    before = image.copy()
    extractor([extractor.prepare(image)])
    np.testing.assert_array_equal(image, before)


def test_nan_in_the_weights_reaches_the_features(tmp_path: Path) -> None:
    section, _ = of_timm(tmp_path, "resnet18")
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    state["layer4.1.bn2.bias"][3] = torch.nan
    torch.save(state, tmp_path / "w.pt")
    (found,) = run(GridExtractor(section, find(section), CPU), pictures()[:1])
    assert np.isnan(found).any()


def test_the_column_has_the_recipes_dtype() -> None:
    section = Grid(kind="grid", image_size=64, cells=2, dtype="int8")
    column = GridExtractor(section, find(section), CPU).columns["features"]
    assert (column.dtype, column.tensor) == ("int8", True)


@pytest.fixture(scope="module")
def model() -> Any:
    """timm's model under its own names, filled by name and not by order from the package's file."""
    model = timm.create_model(SECTION.model, pretrained=False)
    path = find(SECTION).path
    assert path is not None
    load_in_order(model, path)
    return model.eval()


def test_the_trained_network_knows_a_zebra_crossing_from_noise(model: Any) -> None:
    stripes = np.zeros((224, 224, 3), np.float32)
    stripes[::16] = 1
    with torch.inference_mode():
        logits = [model(torch.from_numpy(x).permute(2, 0, 1)[None]) for x in (stripes, np.ones_like(stripes))]
    assert logits[0].argmax() != logits[1].argmax()
    assert logits[0].softmax(1).max() > 0.05  # weights in the wrong places say 1/1000 to everything


def weights(path: Path) -> Weights:
    return Weights(path, file_sha256(path))


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize(
    ("library", "model"), [("timm", "resnet18"), ("torchvision", "resnet18"), ("open_clip", "RN50")]
)
def test_weights_that_would_run_code_are_refused_and_do_not_run(tmp_path: Path, library: Any, model: str) -> None:
    torch.save({"x": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    section = Grid(kind="grid", library=library, model=model, image_size=64)
    with pytest.raises(PairmillError, match=r"bomb\.pt"):
        FeatureMaps(section, weights(tmp_path / "bomb.pt"), CPU)
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
    return {"list": [1, 2], "nested": {"state_dict": state}, "empty": {}, "numbered": {1: state[names[0]]}}[kind]


@pytest.mark.parametrize(
    "kind", ["other order", "fewer", "same names, other shapes", "list", "nested", "empty", "numbered"]
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, model: Any, kind: str) -> None:
    torch.save(damaged(kind, model), tmp_path / "w.pt")
    with pytest.raises(PairmillError, match=r"w\.pt"):
        GridExtractor(SECTION, weights(tmp_path / "w.pt"), CPU)


def test_a_safetensors_file_of_other_names_is_refused_as_it_keeps_no_order(tmp_path: Path, model: Any) -> None:
    from safetensors.torch import save_file

    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    GridExtractor(SECTION, weights(tmp_path / "w.safetensors"), CPU)
    save_file({f"x.{name}": value for name, value in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(PairmillError, match=r"x\.safetensors"):
        GridExtractor(SECTION, weights(tmp_path / "x.safetensors"), CPU)


@pytest.mark.parametrize(("name", "content"), [("w.pt", b""), ("w.pt", b"rubbish"), ("w.safetensors", b"rubbish")])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PairmillError, match="cannot load the weights"):
        GridExtractor(SECTION, weights(tmp_path / name), CPU)


@pytest.mark.parametrize("library", ["timm", "torchvision", "open_clip"])
def test_a_model_that_the_library_does_not_have_is_refused(library: Any) -> None:
    with pytest.raises(PairmillError, match="no_such_model"):
        GridExtractor(Grid(kind="grid", library=library, model="no_such_model"), find(SECTION), CPU)


@pytest.mark.parametrize(("library", "name"), [("timm", "vit_tiny_patch16_224"), ("torchvision", "squeezenet1_0")])
def test_what_pools_no_map_is_no_cnn(tmp_path: Path, library: Any, name: str) -> None:
    build: Any = timm.create_model if library == "timm" else torchvision.models.get_model
    torch.save(build(name).state_dict(), tmp_path / "w.pt")
    section = Grid(kind="grid", library=library, model=name, weights=str(tmp_path / "w.pt"))
    with pytest.raises(PairmillError, match="no feature maps"):
        GridExtractor(section, find(section), CPU)
