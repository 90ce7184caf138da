"""Patch tokens and pooled vectors are the library's own, whichever tower it is."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "signals"))
from tiny_clip import CONFIGURATION, write_tiny_clip

from pipeline.clip_model import find_clip, load_clip
from pipeline.errors import PairmillError
from pipeline.extractors.patch import PatchExtractor
from pipeline.recipe import Patch
from pipeline.store.features import FeatureStore, ImageFeatures, write_features
from pipeline.store.table import Shard, Table
from pipeline.weights import UNTRAINED, Weights, find

CPU = torch.device("cpu")


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(5)
    return [draw.integers(0, 256, (height, 45, 3), dtype=np.uint8) for height in (30, 45, 90)]


def run(extractor: PatchExtractor, images: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    return extractor([extractor.prepare(image) for image in images])


def write_clip(folder: Path, **vision: Any) -> Patch:
    """A CLIP with this tower for images, and random weights that tell pictures apart."""
    configuration = json.loads(json.dumps(CONFIGURATION)) | {"custom_text": True}
    configuration["vision_cfg"] = vision
    name = f"patch-{abs(hash(str(vision)))}"
    (folder / f"{name}.json").write_text(json.dumps(configuration))
    open_clip.add_model_config(folder / f"{name}.json")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model = open_clip.create_model(name)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    torch.save(model.state_dict(), folder / "w.pt")
    return Patch(kind="patch", model=str(folder / f"{name}.json"), weights=str(folder / "w.pt"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Patch:
    clip = write_tiny_clip(tmp_path_factory.mktemp("clip"))
    return Patch(kind="patch", model=clip["model"], weights=clip["pretrained"])


def by_open_clip(section: Patch, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and pooled vector by `forward_intermediates`, which is another way through the tower than ours."""
    open_clip.add_model_config(Path(section.model))
    name = Path(section.model).stem
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=section.weights)
    with torch.inference_mode():
        found = model.eval().forward_intermediates(
            preprocess(Image.fromarray(image))[None],
            image_indices=1,
            normalize_intermediates=True,
            image_output_fmt="NLC",
        )
    return found["image_intermediates"][0][0], found["image_features"][0]


TOWERS: dict[str, dict[str, Any]] = {
    "class token": CONFIGURATION["vision_cfg"],
    "mean of tokens": {**CONFIGURATION["vision_cfg"], "pool_type": "avg"},
    "timm's, with attention pooling": {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": 32,
    },
}


@pytest.mark.parametrize("tower", TOWERS)
def test_tokens_and_pooled_are_open_clips(tmp_path: Path, tower: str) -> None:
    section = write_clip(tmp_path, **TOWERS[tower])
    extractor = PatchExtractor(section, find(section), CPU)
    rows = run(extractor, pictures())
    for image, row in zip(pictures(), rows, strict=True):
        tokens, pooled = by_open_clip(section, image)
        np.testing.assert_allclose(row["features"], tokens, atol=1e-3)
        np.testing.assert_allclose(row["pooled"], pooled, atol=1e-5)
        assert np.linalg.norm(row["pooled"]) == pytest.approx(1, abs=1e-6)
    assert np.ptp([row["pooled"] for row in rows], 0).max() > 0.02
    rows_and_columns = extractor.identity["grid"]
    assert np.prod(rows_and_columns) == len(rows[0]["features"])
    assert extractor.identity["trained"]


def test_pooled_is_what_filter_measures_bit_for_bit(tiny: Patch) -> None:
    assert tiny.weights is not None
    loaded = load_clip(find_clip(tiny.model, tiny.weights), CPU)
    rows = run(PatchExtractor(tiny, find(tiny), CPU), pictures())
    np.testing.assert_array_equal(np.stack([row["pooled"] for row in rows]), loaded.images(pictures()))


def test_tokens_stand_in_the_order_of_rows(tiny: Patch) -> None:
    """Before the first block a token knows its own patch alone, and the blocks keep the order."""
    extractor = PatchExtractor(tiny, find(tiny), CPU)
    visual: Any = load_clip(find_clip(tiny.model, str(tiny.weights)), CPU).model.visual
    dark = np.zeros((32, 32, 3), np.uint8)
    lit = dark.copy()
    lit[8:16, 24:32] = 255  # row 1, column 3 of 4 x 4
    with torch.inference_mode():
        embedded = visual._embeds(extractor._tower.batch([lit])) - visual._embeds(extractor._tower.batch([dark]))
    assert embedded[0, 1:].abs().sum(1).argmax() == 1 * 4 + 3
    assert extractor.identity["grid"] == [4, 4]


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_timms_tokens_and_pooled_are_its_own(tmp_path: Path, name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = timm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    section = Patch(kind="patch", library="timm", model=name, weights=str(tmp_path / "w.pt"))
    extractor = PatchExtractor(section, find(section), CPU)
    side, config = model.pretrained_cfg["input_size"][-1], model.pretrained_cfg
    for image, row in zip(pictures(), run(extractor, pictures()), strict=True):
        square = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.float64) / 255
        tensor = torch.from_numpy((square - np.array(config["mean"])) / np.array(config["std"])).float()
        with torch.inference_mode():
            states = model.forward_features(tensor.permute(2, 0, 1)[None])
            pooled = model.forward_head(states, pre_logits=True)
        np.testing.assert_allclose(row["features"], states[0, model.num_prefix_tokens :], atol=1e-3)
        np.testing.assert_allclose(row["pooled"], pooled[0], atol=1e-3)
    assert np.prod(extractor.identity["grid"]) == len(row["features"])


def test_another_image_size_makes_more_tokens_of_the_same_model(tmp_path: Path) -> None:
    model: Any = timm.create_model("test_vit").eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    section = Patch(kind="patch", library="timm", model="test_vit", weights=str(tmp_path / "w.pt"), image_size=64)
    extractor = PatchExtractor(section, find(section), CPU)
    (row,) = run(extractor, pictures()[:1])
    assert extractor.identity["grid"] == [4, 4]
    assert len(row["features"]) == 16


def test_windows_give_their_grid() -> None:
    section = Patch(kind="patch", library="timm", model="swin_tiny_patch4_window7_224")
    extractor = PatchExtractor(section, Weights(None, UNTRAINED), CPU)
    (row,) = run(extractor, pictures()[:1])
    assert extractor.identity["grid"] == [7, 7]
    assert row["features"].shape == (49, 768)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_pictures_of_any_shape_have_features(tiny: Patch, shape: tuple[int, int], library: str) -> None:
    section = tiny if library == "open_clip" else Patch(kind="patch", library="timm", model="test_vit")
    extractor = PatchExtractor(section, find(section), CPU)
    (row,) = run(extractor, [np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)])
    assert np.isfinite(row["features"]).all()
    assert np.isfinite(row["pooled"]).all()


def test_a_long_picture_is_cut_where_open_clip_would_look_and_others_are_not_touched(tiny: Patch) -> None:
    extractor = PatchExtractor(tiny, find(tiny), CPU)
    strip = np.zeros((10, 4000, 3), np.uint8)
    strip[:, 1900:2100] = 200
    assert (extractor.prepare(strip) == 200).all()
    just = np.random.default_rng(0).integers(0, 256, (20, 320, 3), dtype=np.uint8)
    _, _, preprocess = open_clip.create_model_and_transforms(Path(tiny.model).stem)
    own = preprocess(Image.fromarray(just))
    torch.testing.assert_close(extractor._tower.batch([extractor.prepare(just)])[0], own, atol=0, rtol=0)


def test_a_picture_alone_is_as_in_a_batch_and_the_same_batch_gives_the_same_bytes(tiny: Patch) -> None:
    extractor = PatchExtractor(tiny, find(tiny), CPU)
    together = run(extractor, pictures())
    for image, found in zip(pictures(), together, strict=True):
        (alone,) = run(extractor, [image])
        for name in alone:
            np.testing.assert_allclose(alone[name], found[name], atol=1e-4)
    for one, other in zip(together, run(extractor, pictures()), strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_go_into_a_store_and_come_back(tmp_path: Path, tiny: Patch, dtype: Any) -> None:
    extractor = PatchExtractor(tiny.model_copy(update={"dtype": dtype}), find(tiny), CPU)
    (row,) = run(extractor, pictures()[:1])
    identity = {"columns": {name: column.described for name, column in extractor.columns.items()}}
    table = Table(tmp_path / "features", "extract")
    with table.writing("key", {"00000": "key"}) as writing:
        rows = [ImageFeatures("a", len(row["features"]), row)]
        write_features(table.folder / "00000.parquet", rows, extractor.columns, identity)
        writing.add(Shard.of(table.folder, "00000", "key", ["00000.parquet"], {}))
        writing.commit({"identity": identity})
    found = FeatureStore(table)["a"]
    np.testing.assert_array_equal(found["pooled"], row["pooled"])
    if dtype == "float16":
        np.testing.assert_array_equal(found["features"], row["features"].astype(np.float16))
    else:
        step = np.abs(row["features"]).max(1, keepdims=True) / 127
        assert (np.abs(found["features"] - row["features"]) <= step * 0.51).all()


def test_an_untrained_model_says_so_and_is_the_same_every_time(tiny: Patch) -> None:
    for library, model in (("open_clip", tiny.model), ("timm", "test_vit")):
        section = Patch(kind="patch", library=library, model=model)  # type: ignore[arg-type]
        first, second = (PatchExtractor(section, Weights(None, UNTRAINED), CPU) for _ in range(2))
        assert first.identity["trained"] is False
        for one, other in zip(run(first, pictures()), run(second, pictures()), strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in one)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("content", ["bomb", "rubbish", "another model's"])
@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_weights_that_are_none_are_refused_by_name_and_run_nothing(
    tmp_path: Path, tiny: Patch, library: Any, content: str
) -> None:
    path = tmp_path / "w.pt"
    if content == "rubbish":
        path.write_bytes(b"rubbish")
    else:
        torch.save({"x": Bomb(tmp_path / "ran") if content == "bomb" else torch.zeros(3)}, path)
    model = tiny.model if library == "open_clip" else "test_vit"
    with pytest.raises(PairmillError, match=r"w\.pt"):
        PatchExtractor(Patch(kind="patch", library=library, model=model), Weights(path, "0" * 64), CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("library", "model", "said"),
    [
        ("open_clip", "NoSuchModel", "NoSuchModel"),
        ("open_clip", "nowhere.json", r"nowhere\.json"),
        ("open_clip", "RN50", "no vision transformer"),
        ("timm", "no_such_model", "no_such_model"),
        ("timm", "resnet18", "no vision transformer"),
    ],
)
def test_what_is_no_vit_is_refused(library: Any, model: str, said: str) -> None:
    with pytest.raises(PairmillError, match=said):
        PatchExtractor(Patch(kind="patch", library=library, model=model), Weights(None, UNTRAINED), CPU)


def test_the_size_of_an_open_clip_model_is_its_own() -> None:
    with pytest.raises(ValueError, match="image_size is for timm"):
        Patch(kind="patch", image_size=64)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "cait_xxs24_224"])
def test_pictures_that_a_timm_model_cannot_take_whole_are_refused(model: str) -> None:
    section = Patch(kind="patch", library="timm", model=model, image_size=100)
    with pytest.raises(PairmillError, match="100 pixels"):
        PatchExtractor(section, Weights(None, UNTRAINED), CPU)
