"""Language modelling of the text, given the image: prefix LM and captioning.

Each token is predicted from the image and from the tokens before it. The image and a prefix of the text attend freely,
the rest causally; with no prefix the text's [CLS] stands alone at its beginning. Who writes:

    by = "encoder": the encoder itself, under that mask (UNIMO, Li et al. 2021, section 2.3; BLIP, Li et al. 2022,
        section 3.2, with self-attention weights of its own; KOSMOS-1, Huang et al. 2023, section 2, whose stack is
        always causal);
    by = "decoder": the decoder, from the encoder's last states of the image, and of the prefix where there is one
        (E2E-VLP, Xu et al. 2021; OFA, Wang et al. 2022, whose instruction is left out, there being one task; SimVLM's
        prefix LM, Wang et al. 2022).

With prefix = "random" a prefix's length is drawn evenly for each text, from [CLS] alone to all but the last token. The
state at position t predicts token t + 1; the last target is [SEP]; object tags are not written. loss = cross-entropy
of the next tokens, averaged over the batch's T' targets, with label smoothing where the recipe says so (BLIP: 0.1).
Only these positions go through the head: (T', hidden) -> transform -> (T', vocabulary), whose weights are the word
embedding's.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model_recipe import LanguageModelling
from trainers.data.batch import TextInput
from trainers.network.streams import Wanted
from trainers.network.view import View
from trainers.objectives.objective import OBJECTIVES, Outcome, Sizes
from trainers.objectives.words import WordPrediction

if TYPE_CHECKING:
    from trainers.network.towers import Towers


@OBJECTIVES.add("lm")
class NextTokens(WordPrediction):
    settings: LanguageModelling
    needs = frozenset({"text"})

    def __init__(self, settings: LanguageModelling, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        if settings.by == "decoder":  # which has nothing to look at where there is no image
            self.needs = frozenset({"text", "vision"})  # type: ignore[misc]

    def forward(self, towers: "Towers", random: torch.Generator) -> Outcome:
        text = towers.batch.text
        assert text is not None
        lengths = caption(text).sum(1)
        given = torch.ones_like(lengths)
        if self.settings.prefix == "random":
            drawn = torch.rand(len(given), generator=random).to(given.device)
            given = given + (drawn * (lengths - 1)).long()
        places = torch.arange(text.tokens.shape[1], device=given.device)
        at = (places >= given[:, None] - 1) & (places < lengths[:, None] - 1)
        states = self.states(towers, replace(text, prefix=given), at)
        targets = text.tokens[:, 1:][at[:, :-1]]
        logits = self.logits(towers.model, states[at]).float()
        # A sum over none is zero and not NaN, should no text have a token.
        count = max(len(targets), 1)
        loss = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.settings.smoothing)
        right = (logits.argmax(-1) == targets).float().sum() / count
        return Outcome(loss / count, {"accuracy": right.detach()})

    def states(self, towers: "Towers", text: TextInput, at: Tensor) -> Tensor:
        """Each token's last state, which knows the image, the prefix and what stands before it: (B, T, hidden).

        Only those at the True positions of (B, T) bool `at` mean something.
        """
        if self.settings.by == "encoder":
            return towers.encode(replace(View.of(towers.batch), text=text), Wanted({"text": at}))["text"].inputs
        read = self._read(text) if self.settings.prefix == "random" else None
        return towers.model.decode(text, towers.encode(replace(View.of(towers.batch), text=read))).inputs

    def _read(self, text: TextInput) -> TextInput:
        """What the encoder reads of the text: its prefix, attending freely."""
        assert text.prefix is not None
        places = torch.arange(text.tokens.shape[1], device=text.tokens.device)
        return replace(text, present=text.present & (places < text.prefix[:, None]), prefix=None)


def caption(text: TextInput) -> Tensor:
    """(B, T) bool: what is there and no object tag."""
    return text.present if text.segments is None else text.present & (text.segments == 0)
