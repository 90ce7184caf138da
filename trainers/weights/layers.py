"""The layers that BERT, RoBERTa, VisualBERT and LXMERT have in common, under our names.

Theirs: `attention.self.{query,key,value}`, `attention.output.{dense,LayerNorm}`, `intermediate.dense`,
`output.{dense,LayerNorm}`. Ours keeps query, key and value in one matrix, one below the other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.network.encoder import SHARED, WRITING, Attention, Block
from trainers.network.model import VisionLanguageModel
from trainers.weights.published import Published

Tensors = dict[str, Tensor]
"""By the names of our model's parameters."""


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def text_embedding(source: Published, model: VisionLanguageModel, padding: int = 0) -> Tensors:
    """Word, position and type embeddings and their LayerNorm; the first `padding` positions stand for none.

    The tags of a text (type 1) begin with the second type's vector, where the checkpoint has one.
    """
    words, positions = source["embeddings.word_embeddings.weight"], source["embeddings.position_embeddings.weight"]
    types = source["embeddings.token_type_embeddings.weight"]
    wanted, places = model.text.word.num_embeddings, model.text.position.num_embeddings
    if len(words) < wanted:
        raise PairmillError(
            f"{source.folder} has {len(words):,} pieces, and the tokenizer {wanted:,}",
            "take the checkpoint's own tokenizer: leave text.tokenizer out",
        )
    if len(positions) - padding < places:
        raise PairmillError(
            f"{source.folder} has {len(positions) - padding} positions, and the recipe asks for {places}",
            "lower text.max_tokens",
        )
    kinds = torch.arange(len(model.text.modality)).clamp(max=len(types) - 1)
    return {
        "text.word.weight": words[:wanted],
        "text.position.weight": positions[padding : padding + places],
        "text.modality": types[kinds],
        **under("text.norm", source.part("embeddings.LayerNorm")),
    }


def attention(source: Published, inside: str, output: str, block: int, sublayer: int, owner: str) -> Tensors:
    """One attention sub-layer: `inside` holds query, key and value, `output` what follows."""
    parts = [source.part(f"{inside}.{name}") for name in ("query", "key", "value")]
    ours = f"encoder.blocks.{block}.attention.{sublayer}"
    return {
        **{
            f"{ours}.projections.{owner}.project.{kind}": torch.cat([part[kind] for part in parts])
            for kind in ("weight", "bias")
        },
        **under(f"{ours}.projections.{owner}.out", source.part(f"{output}.dense")),
        **under(f"{ours}.norms.{owner}", source.part(f"{output}.LayerNorm")),
    }


def feedforward(source: Published, first: str, output: str, block: int, owner: str) -> Tensors:
    ours = f"encoder.blocks.{block}.feedforward"
    return {
        **under(f"{ours}.layers.{owner}.0", source.part(f"{first}.dense")),
        **under(f"{ours}.layers.{owner}.2", source.part(f"{output}.dense")),
        **under(f"{ours}.norms.{owner}", source.part(f"{output}.LayerNorm")),
    }


def layer(source: Published, theirs: str, block: Block, number: int, modality: str) -> Tensors:
    """The layer `theirs`, in the block's sub-layer in which the modality looks at itself, and in its feed-forward.

    Where the modalities share weights both get it. A text that is being written begins with the same as one that is
    read (BLIP).
    """
    mapped: Tensors = {}
    at = own_sublayer(block, modality)
    if at is not None:
        sublayer = block.sublayers[at]
        owners = [SHARED if sublayer.shared else modality]
        if sublayer.writes and modality == "text":
            owners.append(WRITING)
        for owner in owners:
            mapped |= attention(source, f"{theirs}.attention.self", f"{theirs}.attention.output", number, at, owner)
    owner = SHARED if block.feedforward.shared else modality
    return mapped | feedforward(source, f"{theirs}.intermediate", f"{theirs}.output", number, owner)


def own_sublayer(block: Block, modality: str) -> int | None:
    """The first sub-layer in which the modality looks at itself, as in a layer of BERT; None where there is none."""
    return next((n for n, sublayer in enumerate(block.sublayers) if _looks_at_itself(sublayer, modality)), None)


def masked_language_head(source: Published, model: VisionLanguageModel) -> Tensors:
    """What BERT's family puts before the word embedding to predict a piece; {} where either side has no such head."""
    dense, norm, bias = "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
    if not source.has(bias):
        dense, norm, bias = "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"
    if "mlm" not in model.objectives or not source.has(bias):
        return {}
    return {
        **under("objectives.mlm.transform.0", source.part(dense, of_base=False)),
        **under("objectives.mlm.transform.2", source.part(norm, of_base=False)),
        "objectives.mlm.bias": source.whole(bias)[: model.text.word.num_embeddings],
    }


def _looks_at_itself(sublayer: Attention, modality: str) -> bool:
    return modality in sublayer.looks.get(modality, ())
