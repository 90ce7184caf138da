"""How well each text fits each image: by dot product where the model has a joint space, else by its matching head."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.errors import PairmillError
from trainers.encoder import Stream, Streams
from trainers.loader import VisionReader, text_input
from trainers.model import VisionLanguageModel
from trainers.objectives.itc import ImageTextContrast
from trainers.objectives.itm import ImageTextMatching
from trainers.training import precision

PART = 16
"""How many texts, and how many images, meet in the fusion at once: PART * PART combinations."""


@dataclass(frozen=True)
class Part:
    """Some of the texts, or of the images: their positions, and their states after the unimodal blocks."""

    positions: np.ndarray
    stream: Stream


@dataclass(frozen=True)
class Scorer:
    """A model at work on texts (token sequences) and images (keys in the store)."""

    model: VisionLanguageModel
    reader: VisionReader
    """Of the features that the model was trained on, or of the same stored otherwise."""
    device: torch.device

    @torch.inference_mode()
    def scores(self, tokens: Sequence[tuple[int, ...]], keys: Sequence[str]) -> np.ndarray:
        """(texts, images) float32, all combinations. Raises PairmillError for a model with neither ITC nor ITM."""
        self.model.to(self.device).eval()
        names = self.model.objectives
        if "itc" not in names and "itm" not in names:
            raise PairmillError(
                "retrieval needs a model trained with itc or itm", "name one in the recipe's objectives"
            )
        with precision(self.device):
            texts, images = list(self._texts(tokens)), list(self._images(keys))
            scores = np.zeros((len(tokens), len(keys)), np.float32)
            for image in images:
                for text in texts:
                    scores[np.ix_(text.positions, image.positions)] = self._meeting(text.stream, image.stream)
        return scores

    def _texts(self, tokens: Sequence[tuple[int, ...]]) -> Iterator[Part]:
        for positions in _by_length([len(sequence) for sequence in tokens]):
            text = text_input([tokens[position] for position in positions]).to(self.device)
            yield Part(positions, self.model.encoder.alone(self.model.embed(text, None))["text"])

    def _images(self, keys: Sequence[str]) -> Iterator[Part]:
        for positions in _by_length(self.reader.store.gather(keys, columns=()).n.tolist()):
            vision = self.reader.read([keys[position] for position in positions]).to(self.device)
            yield Part(positions, self.model.encoder.alone(self.model.embed(None, vision))["vision"])

    def _meeting(self, text: Stream, image: Stream) -> np.ndarray:
        """(texts, images) scores of two parts."""
        if "itc" in self.model.objectives:
            contrast = self.model.objective("itc")
            assert isinstance(contrast, ImageTextContrast)
            ends = [
                self.model.encoder.crossing({name: stream})[name]
                for name, stream in (("text", text), ("vision", image))
            ]
            return (contrast.embed_text(ends[0]) @ contrast.embed_vision(ends[1]).t()).cpu().numpy()
        matching = self.model.objective("itm")
        assert isinstance(matching, ImageTextMatching)
        logits = matching.logits(self.model.encoder.crossing(_crossed(text, image))).float()
        return (logits[:, 1] - logits[:, 0]).view(len(text.states), len(image.states)).cpu().numpy()


def _crossed(text: Stream, image: Stream) -> Streams:
    """Every text with every image, text by text."""
    texts, images = len(text.states), len(image.states)
    return {
        "text": Stream(text.states.repeat_interleave(images, 0), text.present.repeat_interleave(images, 0)),
        "vision": Stream(image.states.repeat(texts, 1, 1), image.present.repeat(texts, 1)),
    }


def _by_length(lengths: list[int]) -> Iterator[np.ndarray]:
    order = np.argsort(lengths, kind="stable")
    yield from (order[first : first + PART] for first in range(0, len(order), PART))
