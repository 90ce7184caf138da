"""A model: embeddings, one encoder, and the objectives with their heads, all as the recipe says."""

from torch import nn

from pipeline.model_recipe import ModelRecipe
from trainers.batch import TextInput, VisionInput
from trainers.embeddings import VISION_EMBEDDINGS, FeatureShape, TextEmbedding
from trainers.encoder import Encoder, Stream, Streams
from trainers.objectives import OBJECTIVES, Objective, Sizes


class VisionLanguageModel(nn.Module):
    """`vocabulary` pieces in, features of `shape` in; `objectives` by name, in the recipe's order."""

    def __init__(self, recipe: ModelRecipe, vocabulary: int, shape: FeatureShape) -> None:
        super().__init__()
        sizes = Sizes(recipe.encoder.hidden, vocabulary, shape)
        self.text = TextEmbedding(recipe.text, recipe.encoder, vocabulary)
        self.vision = VISION_EMBEDDINGS[recipe.vision.kind](recipe.vision, recipe.encoder, shape)
        self.encoder = Encoder(recipe.encoder)
        self.objectives = nn.ModuleDict(
            {name: OBJECTIVES[name](settings, sizes) for name, settings in recipe.objectives.chosen.items()}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=recipe.encoder.initializer)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.vision.mask, std=recipe.encoder.initializer)

    def objective(self, name: str) -> Objective:
        objective = self.objectives[name]
        assert isinstance(objective, Objective)
        return objective

    def embed(self, text: TextInput | None, vision: VisionInput | None) -> Streams:
        """The encoder's input: (B, T, hidden) and (B, V, hidden)."""
        streams = {}
        if text is not None:
            streams["text"] = Stream(self.text(text), text.present)
        if vision is not None:
            streams["vision"] = Stream(self.vision(vision), vision.present)
        return streams

    def encode(self, text: TextInput | None, vision: VisionInput | None) -> Streams:
        """The encoder's last states; a modality that is None is absent."""
        streams: Streams = self.encoder(self.embed(text, vision))
        return streams
