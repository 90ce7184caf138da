"""LXMERT: the whole of two streams with cross-modality layers (recipes/models/lxmert.toml).

Theirs takes the mean of the normalised feature and the normalised box, ours their sum: both LayerNorms are halved. Its
cross-attention is one set of weights for both directions.
"""

import torch

from trainers.network.encoder import SHARED
from trainers.network.model import VisionLanguageModel
from trainers.weights.layers import (
    Tensors,
    attention,
    feedforward,
    layer,
    masked_language_head,
    text_embedding,
    under,
)
from trainers.weights.published import Published

STREAMS = {"text": "lang", "vision": "visn"}
"""Ours -> theirs."""
CROSS, OWN = 0, 1
"""The sub-layers of a cross-modality layer."""


def tensors(source: Published, model: VisionLanguageModel) -> Tensors:
    mapped = text_embedding(source, model) | masked_language_head(source, model)
    for ours, theirs in {"project": "visn_fc", "box": "box_fc"}.items():
        mapped |= under(f"vision.{ours}", source.part(f"encoder.visn_fc.{theirs}"))
    for ours, theirs in {"feature_norm": "visn_layer_norm", "box_norm": "box_layer_norm"}.items():
        halved = {name: tensor / 2 for name, tensor in source.part(f"encoder.visn_fc.{theirs}").items()}
        mapped |= under(f"vision.{ours}", halved)
    mapped["vision.modality"] = torch.zeros_like(model.vision.modality)
    met = {"layer": 0, "r_layers": 0, "x_layers": 0}
    for number, block in enumerate(model.encoder.stack):
        kind = "x_layers" if block.crosses else "layer" if "text" in block.updates else "r_layers"
        theirs = f"encoder.{kind}.{met[kind]}"
        met[kind] += 1
        if kind == "x_layers":
            mapped |= _crossing(source, theirs, number)
        else:
            mapped |= layer(source, theirs, block, number, "text" if kind == "layer" else "vision")
    return mapped


def _crossing(source: Published, theirs: str, number: int) -> Tensors:
    cross = f"{theirs}.visual_attention"
    mapped = attention(source, f"{cross}.att", f"{cross}.output", number, CROSS, SHARED)
    for ours, name in STREAMS.items():
        own = f"{theirs}.{name}_self_att"
        mapped |= attention(source, f"{own}.self", f"{own}.output", number, OWN, ours)
        mapped |= feedforward(source, f"{theirs}.{name}_inter", f"{theirs}.{name}_output", number, ours)
    return mapped
