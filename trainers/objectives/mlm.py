"""Masked language modelling (BERT, section 3.1; UNITER, section 3.2), with the image in full sight.

15 % of a text's tokens, at least one, [CLS] and [SEP] never; of those 80 % become [MASK], 10 % a random piece and 10 %
stay.
The loss is the cross-entropy of the original pieces, averaged over the chosen positions of the batch. Only these M
positions go through the head: (M, hidden) -> transform -> (M, vocabulary), whose weights are the word embedding's.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import MaskedTokens
from trainers.batch import Batch
from trainers.embeddings import EPSILON
from trainers.objectives.masking import choose, corrupt_tokens
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Sizes
from trainers.text import SPECIAL_TOKENS

if TYPE_CHECKING:
    from trainers.model import VisionLanguageModel


@OBJECTIVES.add("mlm")
class MaskedLanguageModelling(Objective):
    settings: MaskedTokens

    def __init__(self, settings: MaskedTokens, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.transform = nn.Sequential(
            nn.Linear(sizes.hidden, sizes.hidden), nn.GELU(), nn.LayerNorm(sizes.hidden, EPSILON)
        )
        self.bias = nn.Parameter(torch.zeros(sizes.vocabulary))

    def forward(self, model: "VisionLanguageModel", batch: Batch, random: torch.Generator) -> Outcome:
        text = batch.text
        words = text.present & (text.tokens >= len(SPECIAL_TOKENS))
        chosen = choose(words, self.settings.probability, random)
        at = chosen.to(text.tokens.device)
        targets = text.tokens[at]
        tokens = corrupt_tokens(text.tokens, chosen, len(self.bias), random)
        states = model.encode(replace(text, tokens=tokens), batch.vision)["text"].states
        logits = self.logits(model, states[at])
        # A sum over none is zero and not NaN, should a batch hold no word at all.
        loss = functional.cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)
        right = (logits.argmax(-1) == targets).float().sum() / max(len(targets), 1)
        return Outcome(loss, {"accuracy": right.detach()})

    def logits(self, model: "VisionLanguageModel", states: Tensor) -> Tensor:
        """(M, hidden) -> (M, vocabulary)."""
        return functional.linear(self.transform(states), model.text.word.weight, self.bias)
