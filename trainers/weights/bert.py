"""BERT and RoBERTa: the text's embedding, and the blocks in which text looks at text, from the first on.

A recipe with more such blocks than the checkpoint has layers begins the rest as it would without; one with fewer takes
the first ones. All else of the model, the vision's part above all, is the recipe's own.
"""

from trainers.network.model import VisionLanguageModel
from trainers.weights.layers import Tensors, layer, masked_language_head, own_sublayer, text_embedding
from trainers.weights.published import Published

RESERVED_POSITIONS = {"bert": 0, "roberta": 2, "xlm-roberta": 2}
"""RoBERTa counts positions from the padding's number, 1, on."""


def tensors(source: Published, model: VisionLanguageModel) -> Tensors:
    padding = RESERVED_POSITIONS[source.configuration["model_type"]]
    mapped = text_embedding(source, model, padding) | masked_language_head(source, model)
    rows = [number for number, block in enumerate(model.encoder.stack) if own_sublayer(block, "text") is not None]
    for theirs, number in zip(range(source.configuration["num_hidden_layers"]), rows, strict=False):
        mapped |= layer(source, f"encoder.layer.{theirs}", model.encoder.stack[number], number, "text")
    return mapped
