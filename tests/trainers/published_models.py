"""Checkpoints of `transformers` with random weights: small, and with nothing at its first value, so that no weight can
be left out or put in another's place unseen."""

import json
from pathlib import Path
from typing import Any

import torch
from synthetic import FUSED, WIDTH, model_recipe
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LxmertConfig,
    LxmertForPreTraining,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    VisualBertConfig,
    VisualBertForPreTraining,
)

from pipeline.model_recipe import ModelRecipe
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel

VOCABULARY = 60
HIDDEN, HEADS, FEEDFORWARD = 24, 3, 40
SIZES = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "intermediate_size": FEEDFORWARD,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
}
SINGLE = [{"repeat": 3, "attention": [FUSED], "weights": "shared"}]
DUAL = [
    {"repeat": 2, "attention": [["text-text"]], "weights": "separate"},
    {"attention": [["vision-vision"]], "weights": "separate"},
    {
        "repeat": 2,
        "attention": [["text-vision", "vision-text"], ["text-text", "vision-vision"]],
        "weights": "separate",
        "attention_weights": ["shared", "separate"],
    },
]


def visualbert(folder: Path) -> VisualBertForPreTraining:
    config = VisualBertConfig(num_hidden_layers=3, visual_embedding_dim=WIDTH, **SIZES)
    return _saved(VisualBertForPreTraining(config), folder)


def lxmert(folder: Path) -> LxmertForPreTraining:
    config = LxmertConfig(
        l_layers=2, r_layers=1, x_layers=2, visual_feat_dim=WIDTH, task_qa=False, visual_attr_loss=False, **SIZES
    )
    return _saved(LxmertForPreTraining(config), folder)


def bert(folder: Path, layers: int = 3) -> BertForMaskedLM:
    return _saved(BertForMaskedLM(BertConfig(num_hidden_layers=layers, **SIZES)), folder)


def roberta(folder: Path) -> RobertaForMaskedLM:
    config = RobertaConfig(num_hidden_layers=3, layer_norm_eps=1e-5, type_vocab_size=1, **SIZES)
    return _saved(RobertaForMaskedLM(config), folder)


def recipe(folder: Path, blocks: list[dict[str, Any]], epsilon: float = 1e-12, **over: Any) -> ModelRecipe:
    """The recipe of a model that begins with the checkpoint."""
    encoder = {
        "hidden": HIDDEN,
        "heads": HEADS,
        "feedforward": FEEDFORWARD,
        "norm": "post",
        "epsilon": epsilon,
        "blocks": blocks,
    }
    values = {
        "text": {"vocabulary": 100, "max_tokens": 20, "checkpoint": str(folder)},
        "encoder": encoder,
        "objectives": {"mlm": {}},
    }
    return model_recipe(**{**values, **over})


def built(made: ModelRecipe) -> VisionLanguageModel:
    """A model with weights of its own, in which everything is still to be replaced."""
    torch.manual_seed(7)
    model = VisionLanguageModel(made, VOCABULARY, FeatureShape(WIDTH))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def change_configuration(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _saved(model: Any, folder: Path) -> Any:
    torch.manual_seed(3)
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.normal_(centre, 0.2)
    model.save_pretrained(folder, safe_serialization=True)
    return model.eval()
