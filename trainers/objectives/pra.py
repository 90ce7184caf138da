"""Phrase-region alignment (KD-VLP, Liu et al. 2022: PRA).

Which region of the image a phrase speaks of is told by language alone: by how alike the phrase and the name of the
region's class (its tag) are. For every phrase p and the O objects of its image (`Batch.objects`),

    target(o | p)    = softmax over o of cos(word vector of p, word vector of o's tag) / temperature,
    predicted(o | p) = softmax over o of cos(a(state of p), b(state of o)) / temperature,

and loss = KL(target || predicted), summed over the objects, averaged over the phrases of matching rows. The state of a
phrase is the mean of its tokens' last states, that of an object the mean over the positions in its box; a and b are
linear, (hidden) -> (hidden). The word vector of a phrase or of a tag is the mean of its pieces' rows of the word
embedding, through which no gradient goes.

The authors' code is not public. Ours are: phrases are all runs of one to `longest` whole words of the caption (the
paper takes noun phrases, which need a parser); the linguistic space, in which the paper compares them with object
labels, is that of the model's own words; the temperature; a and b. Objects that lie on no position and images with
fewer than two take no part.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from pipeline.errors import PairmillError
from pipeline.model_recipe import PhraseRegions
from trainers.data.batch import TextInput
from trainers.data.text import SpecialTokens
from trainers.network.streams import Streams
from trainers.network.view import View
from trainers.objectives.masking import word_starts
from trainers.objectives.objective import OBJECTIVES, Outcome, Reading, Sizes
from trainers.objectives.regions import detected_classes, inside_objects, known_classes, known_grid, mean_of

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


@OBJECTIVES.add("pra")
class PhraseRegionAlignment(Reading):
    settings: PhraseRegions
    needs = frozenset({"text", "vision", "objects"})
    pieces: Tensor
    """(classes, P) int64: the pieces of each class's name, padded."""
    named: Tensor
    """(classes, P) bool: which of them are no padding."""

    def __init__(self, settings: PhraseRegions, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        if known_classes("pra", sizes.objects) != len(sizes.class_words):
            raise PairmillError(
                "pra compares phrases with the names of the detector's classes, and there are "
                f"{len(sizes.class_words)} names for {known_classes('pra', sizes.objects)} classes",
                "extract or import the features of `objects` with their classes' names",
            )
        self.special = sizes.special
        self.grid = known_grid("pra", sizes.features)
        names = [torch.tensor(words, dtype=torch.int64) for words in sizes.class_words]
        # They follow from the recipe and the features: a checkpoint need not carry them.
        self.register_buffer("pieces", pad_sequence(names, batch_first=True), persistent=False)
        lengths = torch.tensor([len(words) for words in names])
        self.register_buffer("named", torch.arange(self.pieces.shape[1]) < lengths[:, None], persistent=False)
        self.phrase = nn.Linear(sizes.hidden, sizes.hidden)
        self.region = nn.Linear(sizes.vision, sizes.hidden)

    def corrupt(self, view: View, random: torch.Generator) -> View:
        return view

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        text, vision, objects = view.original_text, view.original_vision, view.objects
        assert text is not None
        assert vision is not None
        assert objects is not None
        words = phrases(text, self.special, self.settings.longest).to(text.tokens.device)
        positions = inside_objects(vision, self.grid, objects)
        predicted = cosines(
            self.phrase(mean_of(streams["text"].inputs, words)),
            self.region(mean_of(streams["vision"].inputs, positions)),
        )
        target = self._similarity(model.text.word.weight.detach(), text, words, detected_classes(objects))
        there = positions.any(-1)
        taken = words.any(-1) & (there.sum(1, keepdim=True) > 1) & view.true_rows
        loss = divergence(predicted / self.settings.temperature, target / self.settings.temperature, there, taken)
        return Outcome(loss)

    def _similarity(self, vectors: Tensor, text: TextInput, words: Tensor, classes: Tensor) -> Tensor:
        """Of phrases (B, P, T) and the tags of objects of `classes` (B, O), by word vectors: (B, P, O) cosines."""
        tags = mean_of(functional.embedding(self.pieces, vectors), self.named[:, None])[:, 0]
        return cosines(mean_of(functional.embedding(text.tokens, vectors), words), tags[classes])


def phrases(text: TextInput, special: SpecialTokens, longest: int) -> Tensor:
    """All runs of one to `longest` whole words of each caption, as the tokens they are made of: (B, P, T) bool, CPU.

    A text with fewer phrases than another has empty ones. Object tags are no part of the caption.
    """
    pieces = (text.present & ~special.among(text.tokens)).cpu()
    if text.segments is not None:
        pieces &= text.segments.cpu() == 0
    number = word_starts(text, pieces).long().cumsum(1)[:, None].masked_fill(~pieces[:, None], 0)
    count = int(number.max())
    first = torch.arange(1, count + 1)[:, None]
    runs = []
    for length in range(1, longest + 1):
        whole = first + length - 1 <= number.amax(-1, keepdim=True)
        runs.append((number >= first) & (number < first + length) & whole)
    return torch.cat(runs, 1)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """(B, P, width), (B, O, width) -> (B, P, O), in float32; 0 where a vector is 0."""
    first, second = functional.normalize(first.float(), dim=-1), functional.normalize(second.float(), dim=-1)
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.transpose(1, 2)


def divergence(predicted: Tensor, target: Tensor, there: Tensor, taken: Tensor) -> Tensor:
    """Mean of KL(softmax(target) || softmax(predicted)) over the phrases that are taken: (B, P, O) logits each.

    (B, O) bool `there` says which objects there are, (B, P) bool `taken` which phrases.
    """
    images, _ = taken.nonzero(as_tuple=True)
    masked = ~there[images]
    predicted, target = (
        functional.log_softmax(part[taken].masked_fill(masked, -1e9), -1) for part in (predicted, target)
    )
    return functional.kl_div(predicted, target, reduction="sum", log_target=True) / max(len(images), 1)
