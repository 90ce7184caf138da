"""A model: embeddings, one encoder, perhaps a decoder, and the objectives with their heads, all as the recipe says."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.model_recipe import Blocks, ModelRecipe, Switch
from pipeline.model_recipe import Decoder as DecoderRecipe
from pipeline.model_recipe import Encoder as EncoderRecipe
from trainers.data.batch import TextInput, VisionInput
from trainers.data.text import OWN_SPECIAL_TOKENS, SpecialTokens
from trainers.network.embeddings import VISION_EMBEDDINGS, FeatureShape, TextEmbedding
from trainers.network.encoder import Encoder
from trainers.network.streams import Stream, Streams
from trainers.objectives import OBJECTIVES, Objective, Sizes

DECODER_ATTENTION: tuple[tuple[Switch, ...], ...] = (("text-text",), ("text-vision",))
"""A decoder's sub-layers in the encoder's words: the target stands for the text, the memory for the vision."""


class VisionLanguageModel(nn.Module):
    """`vocabulary` pieces in, features of `shape` in; `objectives` by name, in the recipe's order."""

    def __init__(
        self,
        recipe: ModelRecipe,
        vocabulary: int,
        shape: FeatureShape,
        objects: FeatureShape | None = None,
        class_words: tuple[tuple[int, ...], ...] = (),
        special: SpecialTokens = OWN_SPECIAL_TOKENS,
    ) -> None:
        """`objects` and `class_words` as in `Sizes`: what a detector that supervises knows. `special` are the
        tokenizer's."""
        super().__init__()
        sizes = Sizes(
            hidden=recipe.encoder.hidden,
            vision=recipe.encoder.of("vision").hidden,
            vocabulary=vocabulary,
            features=shape,
            epsilon=recipe.encoder.epsilon,
            entries=recipe.vision.dictionary.entries if recipe.vision.dictionary else 0,
            objects=objects,
            class_words=class_words,
            special=special,
        )
        self.text = TextEmbedding(recipe.text, recipe.encoder, vocabulary, special.pad)
        self.vision = VISION_EMBEDDINGS[recipe.vision.kind](recipe.vision, recipe.encoder, shape)
        self.encoder = Encoder(recipe.encoder)
        self.decoder = Decoder(recipe.encoder, recipe.decoder) if recipe.decoder else None
        self.objectives = nn.ModuleDict(
            {name: OBJECTIVES[name](settings, sizes) for name, settings in recipe.objectives.chosen.items()}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=recipe.encoder.initializer)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.vision.mask, self.vision.first, self.decoder.queries if self.decoder else None):
            if parameter is not None:
                nn.init.normal_(parameter, std=recipe.encoder.initializer)
        for name in self.objectives:
            self.objective(name).ready(self)

    def objective(self, name: str) -> Objective:
        objective = self.objectives[name]
        assert isinstance(objective, Objective)
        return objective

    def embed(self, text: TextInput | None, vision: VisionInput | None) -> Streams:
        """The encoder's input: (B, T, hidden) and (B, V, hidden)."""
        streams: dict[str, Stream] = {}
        if vision is not None:
            streams["vision"] = self.vision(vision)
        if text is not None:
            before = streams["vision"].states.shape[1] if streams else 0
            streams["text"] = self.text(text, before)
        return streams

    def encode(self, text: TextInput | None, vision: VisionInput | None) -> Streams:
        """The encoder's last states; a modality that is None is absent."""
        streams: Streams = self.encoder(self.embed(text, vision))
        return streams

    def decode(self, text: TextInput, memory: Streams) -> Stream:
        """The decoder's last states for each token, which sees those before it and the memory: (B, T, hidden)."""
        assert self.decoder is not None
        written = replace(text, prefix=torch.ones_like(text.tokens[:, 0]))
        stream: Stream = self.decoder(self.text(written), memory)
        return stream

    def query(self, memory: Streams) -> Tensor:
        """The decoder's last states of the learnt queries: (B, Q, hidden)."""
        assert self.decoder is not None
        assert self.decoder.queries is not None
        size = len(next(iter(memory.values())).states)
        queries = self.decoder.queries.expand(size, -1, -1)
        stream: Stream = self.decoder(Stream(queries, torch.ones_like(queries[..., 0], dtype=torch.bool)), memory)
        return stream.states


class Decoder(nn.Module):
    """Self-attention, attention to the encoder's last states, feed-forward; `layers` times."""

    def __init__(self, recipe: EncoderRecipe, settings: DecoderRecipe) -> None:
        super().__init__()
        self.memory: Sequence[str] = settings.memory
        row = Blocks(repeat=settings.layers, attention=DECODER_ATTENTION, weights="separate")
        self.stack = Encoder(recipe.model_copy(update={"blocks": (row,)}))
        self.queries = nn.Parameter(torch.zeros(settings.queries, recipe.hidden)) if settings.queries else None

    def forward(self, target: Stream, memory: Streams) -> Stream:
        seen = [memory[name] for name in self.memory if name in memory]
        states, present = torch.cat([part.states for part in seen], 1), torch.cat([part.present for part in seen], 1)
        streams: Streams = self.stack({"text": target, "vision": Stream(states, present)})
        return streams["text"]
