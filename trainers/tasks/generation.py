"""Captions: what a model that was trained with the objective `lm` writes about images.

Beam search over whole batches; a beam of 1 is greedy. The image is encoded once; the text so far goes through the
network at each step again, which for captions of some twenty tokens costs less than keeping every layer's keys would
complicate.
"""

from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.data.batch import Batch, TextInput, VisionInput
from trainers.network.model import VisionLanguageModel
from trainers.network.streams import Streams
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives.lm import NextTokens


@dataclass(frozen=True)
class Caption:
    """What was written about one image."""

    text: str
    tokens: tuple[int, ...]
    """Without [CLS] and [SEP]."""
    score: float
    """The log-probability of the tokens and of [SEP], divided by their number to the power `length_penalty`."""


class Writer:
    """The next token's probabilities, for texts about a batch's images, which are encoded once."""

    def __init__(self, model: VisionLanguageModel, vision: VisionInput) -> None:
        if "lm" not in model.objectives:
            raise PairmillError("this model has not learnt to write", "train one whose recipe has the objective lm")
        objective = model.objective("lm")
        assert isinstance(objective, NextTokens)
        self.model, self.objective = model, objective
        images = len(vision.present)
        partners = torch.eye(images, dtype=torch.bool, device=vision.present.device)
        batch = Batch(tuple(map(str, range(images))), None, vision, partners)
        self._towers = Towers(model, batch)
        self._memory: Streams | None = None
        if objective.settings.by == "decoder":
            self._memory = self._towers.encode(View.of(batch))

    def log_probabilities(self, tokens: Tensor, images: Tensor) -> Tensor:
        """N texts so far (N, T) int64, from [CLS] on, about the images (N,) -> (N, vocabulary) for the next token.

        [PAD], [CLS], [MASK] and [UNK] are never written; the others' probabilities sum to 1.
        """
        text = TextInput(tokens, torch.ones_like(tokens, dtype=torch.bool), prefix=torch.ones_like(tokens[:, 0]))
        if self._memory is not None:
            memory = {name: stream.select(images) for name, stream in self._memory.items()}
            last = self.model.decode(text, memory).states[:, -1]
        else:
            vision = self._towers.vision.select(images)
            written = self._towers.text_of(text, vision.states.shape[1])
            last = self.model.encoder.crossing({"vision": vision, "text": written})["text"].states[:, -1]
        special = self.objective.special
        logits = self.objective.logits(self.model, last).float()
        logits[:, [special.pad, special.unknown, special.cls, special.mask]] = -torch.inf
        return logits.log_softmax(-1)


@torch.inference_mode()
def caption(
    model: VisionLanguageModel,
    vision: VisionInput,
    tokenizer: Tokenizer,
    beam: int = 1,
    max_tokens: int | None = None,
    length_penalty: float = 0.0,
) -> list[Caption]:
    """The best caption that was found for each image of a batch, which is on the model's device.

    `max_tokens` bounds a caption's pieces, [SEP] not counted; by default as many as the model has positions for. With
    `length_penalty` > 0 a finished caption's log-probability is divided by its number of tokens to that power. Raises
    PairmillError where the model cannot write, or not so much.
    """
    room = len(model.text.position.weight) - 2
    most = room if max_tokens is None else max_tokens
    if not 1 <= most <= room:
        raise PairmillError(f"this model writes 1 to {room} tokens, not {most}", "give another max_tokens")
    training = model.training
    model.eval()
    try:
        found = _search(Writer(model, vision), len(vision.present), beam, most, length_penalty)
    finally:
        model.train(training)
    return [replace(written, text=tokenizer.decode(list(written.tokens))) for written in found]


def _search(writer: Writer, images: int, beam: int, max_tokens: int, length_penalty: float) -> list[Caption]:
    """The best of `beam` captions of each image; as captions finish, so many fewer are carried on."""
    special = writer.objective.special
    device = writer.model.text.word.weight.device
    finished: list[list[Caption]] = [[] for _ in range(images)]
    image = torch.arange(images, device=device)
    tokens = torch.full((images, 1), special.cls, device=device)
    scores = torch.zeros(images, device=device)
    for length in range(1, max_tokens + 2):
        steps = writer.log_probabilities(tokens, image)
        if length > max_tokens:  # there is room for nothing but the end
            _finish(finished, image, tokens, scores + steps[:, special.sep], length, length_penalty)
            break
        totals = scores[:, None] + steps
        kept_rows, kept_tokens, kept_scores = [], [], []
        for number in image.unique().tolist():
            rows = (image == number).nonzero()[:, 0]
            open_places = beam - len(finished[number])
            flat = totals[rows].flatten()
            best = flat.topk(min(open_places, int((flat > -torch.inf).sum())))
            kept_rows.append(rows[best.indices // totals.shape[1]])
            kept_tokens.append(best.indices % totals.shape[1])
            kept_scores.append(best.values)
        rows, new, scores = torch.cat(kept_rows), torch.cat(kept_tokens), torch.cat(kept_scores)
        ends = new == special.sep
        _finish(finished, image[rows][ends], tokens[rows][ends], scores[ends], length, length_penalty)
        tokens = torch.cat([tokens[rows], new[:, None]], 1)[~ends]
        image, scores = image[rows][~ends], scores[~ends]
        if not len(image):
            break
    return [max(captions, key=lambda written: written.score) for captions in finished]


def _finish(
    finished: list[list[Caption]], images: Tensor, tokens: Tensor, scores: Tensor, length: int, penalty: float
) -> None:
    for number, row, score in zip(images.tolist(), tokens[:, 1:].tolist(), scores.tolist(), strict=True):
        finished[number].append(Caption("", tuple(row), score / length**penalty))
