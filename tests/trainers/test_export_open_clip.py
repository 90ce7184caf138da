"""What open_clip computes with an exported model is what ours computes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from synthetic import model_recipe
from torch.nn import functional

from pipeline.model_recipe import ModelRecipe
from trainers.data.batch import TextInput, VisionInput
from trainers.data.text import special_tokens, train_tokenizer
from trainers.export_open_clip import config, refusal, weights
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel
from trainers.objectives.itc import ImageTextContrast
from trainers.saved import SavedRun

PATCH, SIDE = 2, 3
TEXTS = ["a red cat", "the blue house on a hill", "green"]
ROW = {"repeat": 2, "attention": [["text-text", "vision-vision"]], "weights": "separate"}


def clip_recipe(**over: Any) -> ModelRecipe:
    """A minute CLIP with towers of two widths."""
    encoder = {"hidden": 16, "heads": 2, "feedforward": 24, "norm": "pre", "epsilon": 1e-5, "initializer": 0.2}
    encoder |= {"vision": {"hidden": 24, "heads": 4, "feedforward": 40}, "blocks": [ROW]}
    values: dict[str, Any] = {
        "text": {"vocabulary": 200, "max_tokens": 24, "norm": False, "causal": True, "pool": "last"},
        "vision": {"kind": "pixel", "norms": ["sum"], "first": "token"},
        "encoder": encoder,
        "objectives": {"itc": {"width": 8}},
    }
    for section, changes in over.items():
        values[section] = changes if section == "objectives" else {**values[section], **changes}
    return model_recipe("pixel", **values)


@pytest.fixture
def saved() -> SavedRun:
    """An untrained model whose every parameter matters: none is zero or one."""
    recipe = clip_recipe()
    tokenizer = train_tokenizer(TEXTS * 3, recipe.text.vocabulary)
    torch.manual_seed(0)
    shape = FeatureShape(3 * PATCH**2, 0, (SIDE, SIDE))
    model = VisionLanguageModel(recipe, tokenizer.get_vocab_size(), shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.vision.mean.add_(torch.randn(shape.width))
        model.vision.deviation.mul_(1 + torch.rand(shape.width))
    return SavedRun(recipe, tokenizer, model)


def ours(saved: SavedRun, text: TextInput, vision: VisionInput) -> tuple[torch.Tensor, torch.Tensor]:
    contrast = saved.model.objective("itc")
    assert isinstance(contrast, ImageTextContrast)
    texts, images = saved.model.encode(text, None)["text"], saved.model.encode(None, vision)["vision"]
    return contrast.embed_text(texts), contrast.embed_vision(images)


def pictures(number: int) -> tuple[torch.Tensor, VisionInput]:
    """(B, 3, h, w) as open_clip takes them, and the same pictures as patches of bytes."""
    size = SIDE * PATCH
    images = np.random.default_rng(0).integers(0, 256, (number, size, size, 3), np.uint8)
    patches = images.reshape(number, SIDE, PATCH, SIDE, PATCH, 3).swapaxes(2, 3).reshape(number, SIDE**2, -1)
    cells = np.broadcast_to(np.indices((SIDE, SIDE)).reshape(2, -1).T, (number, SIDE**2, 2))
    vision = VisionInput(
        torch.from_numpy(patches.copy()),
        torch.ones(number, SIDE**2, dtype=torch.bool),
        cells=torch.from_numpy(cells.copy()),
    )
    scaled = (torch.from_numpy(images).float() / 255 - 0.5) / 0.5
    return scaled.permute(0, 3, 1, 2), vision


def test_open_clip_gives_the_same_embeddings(saved: SavedRun, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    settings = config(saved)
    save_file(weights(saved.model), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    theirs.eval()
    sequences = [encoding.ids for encoding in saved.tokenizer.encode_batch(TEXTS)]
    padded = torch.zeros(len(TEXTS), saved.recipe.text.max_tokens, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = torch.tensor(sequence)
    images, vision = pictures(5)
    with torch.inference_mode():
        texts, pixels = ours(saved, TextInput(padded, padded != special_tokens(saved.tokenizer).pad), vision)
        assert torch.allclose(theirs.encode_text(padded, normalize=True), texts, atol=1e-4)
        assert torch.allclose(theirs.encode_image(images, normalize=True), pixels, atol=1e-4)
        shuffled = theirs.encode_image(images.flip(3), normalize=True)
        assert not torch.allclose(shuffled, pixels, atol=1e-2), "the embeddings do not depend on the picture"
    contrast = saved.model.objective("itc")
    assert isinstance(contrast, ImageTextContrast)
    assert math.isclose(theirs.logit_scale.item(), contrast.scale.log_scale.item(), rel_tol=1e-6)
    assert list(preprocess.transforms[-1].mean) == [0.5, 0.5, 0.5]


def test_the_norms_are_a_dual_encoders(saved: SavedRun) -> None:
    """Every weight of open_clip's is given, and no other."""
    theirs = open_clip.CLIP(**config(saved)["model_cfg"])
    given, wanted = weights(saved.model), theirs.state_dict()
    assert {name: tensor.shape for name, tensor in given.items()} == {
        name: tensor.shape for name, tensor in wanted.items() if name != "attn_mask"
    }
    assert all(functional.normalize(tensor.flatten(), dim=0).isfinite().all() for tensor in given.values())


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"text": {"causal": False}}, "not causal"),
        ({"text": {"norm": True}}, "LayerNorm over the text"),
        ({"vision": {"first": "none"}}, "leading token"),
        ({"vision": {"norms": ["parts", "sum"]}}, "norms"),
        ({"vision": {"kind": "grid"}}, "grid features"),
        ({"encoder": {"norm": "post"}}, "LayerNorms after"),
        ({"encoder": {"epsilon": 1e-12}}, "epsilon"),
        ({"objectives": {"itc": {"width": 8, "bias": True}}}, "bias"),
        ({"objectives": {"mlm": {}}}, "without itc"),
        ({"encoder": {"vision": None, "blocks": [{**ROW, "weights": "shared"}]}}, "share"),
        ({"encoder": {"blocks": [{**ROW, "attention": [["text-text"]]}]}}, "without blocks"),
        (
            {"encoder": {"vision": None, "blocks": [ROW, {**ROW, "attention": [["text-vision"]]}]}},
            "look at each other",
        ),
    ],
)
def test_what_open_clip_has_no_form_for_is_named(over: dict[str, Any], named: str) -> None:
    assert refusal(clip_recipe()) == ""
    assert named in refusal(clip_recipe(**over))
