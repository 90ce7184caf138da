"""From `text.checkpoint` to a model's first weights: which family's map, what must agree, and the copying."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe
from pipeline.store.atomic import file_sha256
from trainers.network.model import VisionLanguageModel
from trainers.weights import bert, lxmert, visualbert
from trainers.weights.layers import Tensors
from trainers.weights.published import CONFIGURATION, TENSORS, TOKENIZER, Published


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint."""

    tensors: Callable[[Published, VisionLanguageModel], Tensors]
    whole: bool = False
    """Whether it gives all of the text's, the vision's and the encoder's weights, and must fit exactly."""
    count: tuple[str, ...] = ("num_hidden_layers",)
    """The numbers of layers in its configuration, which a whole model has together."""


FAMILIES: Mapping[str, Family] = {
    "bert": Family(bert.tensors),
    "roberta": Family(bert.tensors),
    "xlm-roberta": Family(bert.tensors),
    "visual_bert": Family(visualbert.tensors, whole=True),
    "lxmert": Family(lxmert.tensors, whole=True, count=("l_layers", "r_layers", "x_layers")),
}
"""By `model_type` of the configuration."""
OURS = ("text.", "vision.", "encoder.")
LEARNT_HERE = ("vision.mask", "vision.first")
"""What no checkpoint has: what stands for a hidden feature, and for the whole image."""
MOST_LAYERS = 1000
EPSILON = 1e-12
"""The LayerNorms' where a configuration does not say (LXMERT)."""


def initialise(model: VisionLanguageModel, recipe: ModelRecipe) -> None:
    """Copy the weights of the recipe's `text.checkpoint`, if it names one, into a model that was just built.

    Raises PairmillError where the checkpoint cannot be read or does not fit the recipe.
    """
    if recipe.text.checkpoint is None:
        return
    source = Published.read(Path(recipe.text.checkpoint))
    family = _family(source)
    _check_sizes(source, family, recipe, model)
    mapped = family.tensors(source, model)
    parameters = dict(model.named_parameters())
    if family.whole:
        rest = [name for name in parameters if name.startswith(OURS) and name not in {*mapped, *LEARNT_HERE}]
        if rest:
            raise PairmillError(f"{source.folder} has nothing for {rest[0]}", _like(source))
    with torch.no_grad():
        for name, tensor in mapped.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                ours = tuple(parameters[name].shape) if name in parameters else "none"
                raise PairmillError(
                    f"{source.folder} has {name} of shape {tuple(tensor.shape)}, the recipe's model {ours}",
                    _like(source),
                )
            parameters[name].copy_(tensor)


def tokenizer_file(recipe: ModelRecipe) -> str | None:
    """The tokenizer.json that the recipe's text goes by: the one it names, or its checkpoint's; None is neither.

    Raises PairmillError where a checkpoint has none.
    """
    text = recipe.text
    if text.tokenizer is not None or text.checkpoint is None:
        return text.tokenizer
    path = Path(text.checkpoint, TOKENIZER)
    if not path.is_file():
        raise PairmillError(
            f"{text.checkpoint} has no {TOKENIZER}", "name the tokenizer that it was trained with in text.tokenizer"
        )
    return str(path)


def checkpoint_digest(recipe: ModelRecipe) -> str | None:
    """What tells the checkpoint's contents from others: for a run's key."""
    if recipe.text.checkpoint is None:
        return None
    files = [Path(recipe.text.checkpoint, name) for name in (CONFIGURATION, TENSORS)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise PairmillError(f"there is no {missing[0]}", "correct text.checkpoint")
    return "-".join(file_sha256(file) for file in files)


def _family(source: Published) -> Family:
    kind = source.configuration.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise PairmillError(
            f"{source.folder} is a checkpoint of {kind!r}", f"name one of {', '.join(FAMILIES)}, or none"
        )
    return FAMILIES[kind]


def _check_sizes(source: Published, family: Family, recipe: ModelRecipe, model: VisionLanguageModel) -> None:
    """Raise PairmillError where the network is another one: some of that no tensor's shape would tell."""
    said, encoder = source.configuration, recipe.encoder
    wanted = {
        "hidden_size": (said.get("hidden_size"), encoder.hidden, "encoder.hidden"),
        "num_attention_heads": (said.get("num_attention_heads"), encoder.heads, "encoder.heads"),
        "intermediate_size": (said.get("intermediate_size"), encoder.feedforward, "encoder.feedforward"),
        "layer_norm_eps": (said.get("layer_norm_eps", EPSILON), encoder.epsilon, "encoder.epsilon"),
    }
    for name, (theirs, ours, key) in wanted.items():
        if theirs != ours:
            raise PairmillError(f"{source.folder} has {name} = {theirs}, the recipe {ours}", f"set {key} = {theirs}")
    if said.get("hidden_act", "gelu") != "gelu":
        raise PairmillError(f"{source.folder} has hidden_act = {said['hidden_act']}", "name a checkpoint with gelu")
    if said.get("position_embedding_type", "absolute") != "absolute" or said.get("bypass_transformer"):
        raise PairmillError(f"{source.folder} is a variant of its architecture that is not here", "name another")
    if any(block.pre for block in model.encoder.stack if "text" in block.updates):
        raise PairmillError(f"{source.folder} has its LayerNorms after the sums", 'set encoder.norm = "post"')
    layers = 0
    for name in family.count:
        count = said.get(name)
        if not isinstance(count, int) or not 0 <= count <= MOST_LAYERS:
            raise PairmillError(f"{source.folder}: {name} is {count!r}", f"correct its {CONFIGURATION}")
        layers += count
    if family.whole and layers != len(model.encoder.stack):
        raise PairmillError(
            f"{source.folder} has {layers} layers, the recipe {len(model.encoder.stack)}", _like(source)
        )


def _like(source: Published) -> str:
    kind = str(source.configuration["model_type"]).replace("_", "")
    return f"give the recipe the checkpoint's shape, as in models/{kind}.toml"
