"""Masked language modelling (BERT, section 3.1; UNITER, section 3.2), with the image, if there is one, in full sight.

15 % of a text's tokens, at least one, special ones never, tags like words (Oscar); of those 80 % become [MASK], 10 % a
random piece and 10 % stay. By the recipe's `unit` they are pieces, whole words (ViLT, section 3.3), or one run of words
(InterBERT). The loss is the cross-entropy of the original pieces, averaged over the chosen positions of the batch; in a
view whose texts and images were recombined, over those of the rows that match. Only these M positions go through the
head: (M, hidden) -> transform -> (M, vocabulary), whose weights are the word embedding's.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.model_recipe import MaskedTokens
from trainers.network.streams import Streams, Wanted
from trainers.network.view import View
from trainers.objectives.masking import choose_tokens, corrupt_tokens
from trainers.objectives.objective import OBJECTIVES, Outcome, Reading
from trainers.objectives.words import WordPrediction

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


@OBJECTIVES.add("mlm")
class MaskedLanguageModelling(WordPrediction, Reading):
    settings: MaskedTokens
    needs = frozenset({"text"})

    def corrupt(self, view: View, random: torch.Generator) -> View:
        text = view.text
        assert text is not None
        chosen = choose_tokens(text, self.special, self.settings.unit, self.settings.probability, random)
        tokens = corrupt_tokens(text.tokens, chosen, len(self.bias), self.special, random)
        # Every row is corrupted, so that a [MASK] does not tell which rows match; only matching rows are predicted.
        at = chosen.to(tokens.device) & view.true_rows
        return replace(view, text=replace(text, tokens=tokens), tokens=at)

    def wanted(self, view: View) -> Wanted:
        assert view.tokens is not None
        return Wanted({"text": view.tokens})

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        assert view.original_text is not None
        assert view.tokens is not None
        targets = view.original_text.tokens[view.tokens]
        logits = self.logits(model, streams["text"].inputs[view.tokens])
        # A sum over none is zero and not NaN, should a batch hold no word at all.
        loss = functional.cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)
        right = (logits.argmax(-1) == targets).float().sum() / max(len(targets), 1)
        return Outcome(loss, {"accuracy": right.detach()})
