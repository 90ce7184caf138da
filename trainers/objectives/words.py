"""The head of objectives that predict pieces of the text: BERT's transform, then the word embedding's own weights."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.objectives.objective import Objective, Sizes

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


class WordPrediction(Objective):
    """An objective with such a head; it is run at the M positions that are predicted."""

    def __init__(self, settings: Any, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.special = sizes.special
        self.transform = nn.Sequential(
            nn.Linear(sizes.hidden, sizes.hidden), nn.GELU(), nn.LayerNorm(sizes.hidden, sizes.epsilon)
        )
        self.bias = nn.Parameter(torch.zeros(sizes.vocabulary))

    def logits(self, model: "VisionLanguageModel", states: Tensor) -> Tensor:
        """(M, hidden) -> (M, vocabulary)."""
        return functional.linear(self.transform(states), model.text.word.weight, self.bias)
