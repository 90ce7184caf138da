"""A trained dual encoder of pixels in open_clip's format: `open_clip.create_model("local-dir:FOLDER")` loads it.

What the formats put in different places is folded together: our standardisation of pixels and the bias of their
projection go into the weights and positions of open_clip's convolution, rows and columns into one position a patch,
the modality's embedding into the positions. The embeddings are the same for square pictures of the side that the
extractor makes; open_clip knows no others.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import PairmillError
from pipeline.model_recipe import Blocks, ModelRecipe
from pipeline.store.atomic import replacing, write_json
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.network.embeddings import GridEmbedding
from trainers.network.encoder import Block
from trainers.network.model import VisionLanguageModel
from trainers.objectives.itc import ImageTextContrast
from trainers.saved import TOKENIZER, SavedRun, load_run

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
EPSILON = 1e-5
"""open_clip's LayerNorms'."""
BYTE = 255.0
MIDDLE = 0.5
"""open_clip is told to give pixels as (x / 255 - MIDDLE) / MIDDLE."""


def export(dataset: Dataset, name: str, features: str, folder: Path) -> str:
    """Write the finished run `name`, which reads the extractor `features`, to a new folder.

    Raises PairmillError, naming what is in the way, for a model that open_clip has no form for.
    """
    if folder.exists() and any(folder.iterdir()):
        raise PairmillError(f"{folder} is not empty", "name a new folder with OUT=")
    store = FeatureStore(dataset.features(features))
    saved = load_run(dataset.run(name), store)
    problem = refusal(saved.recipe)
    if problem:
        raise PairmillError(
            f"{name}: open_clip has no form for {problem}", "recipes/models/clip.toml has what it takes"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as partial:
        save_file(weights(saved.model), partial)
    (folder / TOKENIZER).write_text(saved.tokenizer.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", _tokenizer_config(saved))
    write_json(folder / CONFIG, config(saved))
    return f"{folder}: {WEIGHTS}, {CONFIG} and the tokenizer, for open_clip.create_model('local-dir:{folder}')"


def refusal(recipe: ModelRecipe) -> str:
    """What of the recipe open_clip's CLIP has no form for; empty where there is nothing."""
    text, vision, encoder, itc = recipe.text, recipe.vision, recipe.encoder, recipe.objectives.itc
    towers = {modality: _rows(recipe, modality) for modality in ("text", "vision")}
    checks: Mapping[str, bool] = {
        f"{vision.kind} features": vision.kind != "pixel",
        "a model without itc": itc is None,
        "projections with a bias": bool(itc and itc.bias),
        "streams that look at each other": any(_crosses(row) for row in encoder.blocks),
        "weights that text and vision share": any(row.weights == "shared" for row in encoder.blocks),
        "a tower without blocks": not all(towers.values()),
        "blocks of several attention sub-layers": any(len(row.attention) > 1 for row in encoder.blocks),
        "LayerNorms after the sums": any((row.norm or encoder.norm) == "post" for row in encoder.blocks),
        f"LayerNorms with an epsilon of {encoder.epsilon}": not math.isclose(encoder.epsilon, EPSILON),
        "an image without a leading token": vision.first != "token",
        f"embeddings with the norms {list(vision.norms)}": vision.norms != ("sum",),
        "a LayerNorm over the text's embedding": text.norm,
        "a text that is not causal": not text.causal or text.pool != "last",
        "object tags": text.tags > 0,
        "a resampler or a dictionary": bool(vision.resampler or vision.dictionary),
    }
    return next((what for what, is_so in checks.items() if is_so), "")


def config(saved: SavedRun) -> dict[str, Any]:
    """open_clip's own description of the model."""
    recipe, model = saved.recipe, saved.model
    assert isinstance(model.vision, GridEmbedding)
    itc = recipe.objectives.itc
    assert itc
    text, vision = recipe.encoder.of("text"), recipe.encoder.of("vision")
    rows, columns = model.vision.row.num_embeddings, model.vision.column.num_embeddings
    patch = _patch(model)
    normal = (MIDDLE,) * 3
    return {
        "model_cfg": {
            "embed_dim": itc.width,
            "vision_cfg": {
                "image_size": [rows * patch, columns * patch],
                "patch_size": patch,
                "layers": len(_rows(recipe, "vision")),
                "width": vision.hidden,
                "head_width": vision.hidden // vision.heads,
                "mlp_ratio": vision.feedforward / vision.hidden,
            },
            "text_cfg": {
                "context_length": recipe.text.max_tokens,
                "vocab_size": saved.tokenizer.get_vocab_size(),
                "hf_tokenizer_name": "local",
                "layers": len(_rows(recipe, "text")),
                "width": text.hidden,
                "heads": text.heads,
                "mlp_ratio": text.feedforward / text.hidden,
                "pool_type": "eos",
                "eos_id": saved.tokenizer.token_to_id("[SEP]"),
                "pad_id": saved.tokenizer.token_to_id("[PAD]"),
            },
        },
        "preprocess_cfg": {"mean": normal, "std": normal, "interpolation": "bicubic", "resize_mode": "squash"},
    }


def weights(model: VisionLanguageModel) -> dict[str, Tensor]:
    """The model's weights under open_clip's names, float32."""
    contrast = model.objective("itc")
    assert isinstance(contrast, ImageTextContrast)
    named = {
        "token_embedding.weight": model.text.word.weight,
        "positional_embedding": model.text.position.weight + model.text.modality[0],
        "text_projection": contrast.text.weight.t(),
        "visual.proj": contrast.vision.weight.t(),
        "logit_scale": contrast.scale.log_scale,
        **_embedding(model),
    }
    for prefix, modality in (("", "text"), ("visual.", "vision")):
        for number, block in enumerate(_blocks(model, modality)):
            named |= {f"{prefix}transformer.resblocks.{number}.{name}": t for name, t in _block(block, modality)}
    named |= _norm("ln_final", _closing(model, "text")) | _norm("visual.ln_post", _closing(model, "vision"))
    return {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in named.items()}


def _embedding(model: VisionLanguageModel) -> dict[str, Tensor]:
    vision, patch = model.vision, _patch(model)
    assert isinstance(vision, GridEmbedding)
    assert vision.first is not None
    assert isinstance(vision.norm, nn.LayerNorm)
    # (byte - mean) / deviation, in terms of what open_clip gives: (byte / 255 - MIDDLE) / MIDDLE.
    scale = BYTE * MIDDLE / vision.deviation
    shift = (BYTE * MIDDLE - vision.mean) / vision.deviation
    kernel = (vision.project.weight * scale).view(-1, patch, patch, 3).permute(0, 3, 1, 2)
    constant = vision.project.bias + vision.project.weight @ shift + vision.modality
    places = (vision.row.weight[:, None] + vision.column.weight[None]).flatten(0, 1) + constant
    return {
        "visual.conv1.weight": kernel,
        "visual.class_embedding": vision.first,
        "visual.positional_embedding": torch.cat([vision.modality[None], places]),
        **_norm("visual.ln_pre", vision.norm),
    }


def _patch(model: VisionLanguageModel) -> int:
    """The side of a patch in pixels, of which each is three numbers."""
    return math.isqrt(model.vision.project.in_features // 3)


def _block(block: Block, modality: str) -> Iterator[tuple[str, Tensor]]:
    sublayer, feedforward = block.sublayers[0], block.feedforward
    projections, layers = sublayer.projections[modality], feedforward.layers[modality]
    modules = {
        "ln_1": sublayer.norms[modality],
        "ln_2": feedforward.norms[modality],
        "attn.out_proj": projections.get_submodule("out"),
        "mlp.c_fc": layers.get_submodule("0"),
        "mlp.c_proj": layers.get_submodule("2"),
    }
    for name, module in modules.items():
        yield f"{name}.weight", module.get_parameter("weight")
        yield f"{name}.bias", module.get_parameter("bias")
    yield "attn.in_proj_weight", projections.get_parameter("project.weight")
    yield "attn.in_proj_bias", projections.get_parameter("project.bias")


def _blocks(model: VisionLanguageModel, modality: str) -> list[Block]:
    return [block for block in model.encoder.stack if modality in block.updates]


def _closing(model: VisionLanguageModel, modality: str) -> nn.Module:
    """The LayerNorm that ends the modality's blocks."""
    norms = [
        norms.get_submodule(modality)
        for norms in model.encoder.closing.values()
        if modality in dict(norms.named_children())
    ]
    return norms[-1]


def _norm(name: str, norm: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": norm.get_parameter("weight"), f"{name}.bias": norm.get_parameter("bias")}


def _rows(recipe: ModelRecipe, modality: str) -> list[Blocks]:
    """The rows whose blocks update the modality, each as often as it is repeated."""
    own = f"{modality}-{modality}"
    return [row for row in recipe.encoder.blocks if any(own in sub for sub in row.attention) for _ in range(row.repeat)]


def _crosses(row: Blocks) -> bool:
    return any(len(set(switch.split("-"))) == 2 for switches in row.attention for switch in switches)


def _tokenizer_config(saved: SavedRun) -> dict[str, Any]:
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": saved.recipe.text.max_tokens, **names}
