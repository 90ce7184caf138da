"""VisualBERT: the whole of a single stream without boxes (recipes/models/visualbert.toml).

Theirs adds to each projected region the second type's vector and the first visual position's; ours has one vector for
both. Theirs puts one LayerNorm over both modalities' sums, ours one over each: both get it.
"""

from trainers.network.model import VisionLanguageModel
from trainers.weights.layers import Tensors, layer, masked_language_head, text_embedding, under
from trainers.weights.published import Published

REGION_TYPE = 1


def tensors(source: Published, model: VisionLanguageModel) -> Tensors:
    types = source["embeddings.visual_token_type_embeddings.weight"]
    positions = source["embeddings.visual_position_embeddings.weight"]
    mapped = {
        **text_embedding(source, model),
        **masked_language_head(source, model),
        **under("vision.project", source.part("embeddings.visual_projection")),
        **under("vision.norm", source.part("embeddings.LayerNorm")),
        "vision.modality": types[REGION_TYPE] + positions[0],
    }
    for number in range(source.configuration["num_hidden_layers"]):
        if number < len(model.encoder.stack):
            mapped |= layer(source, f"encoder.layer.{number}", model.encoder.stack[number], number, "text")
    return mapped
