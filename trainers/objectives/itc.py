"""Image-text contrast: symmetric InfoNCE over the batch (CLIP, section 2.3).

The modalities are encoded apart. Text: the [CLS] state; vision: the mean state; both projected to the joint space and
scaled to length 1. logits[i, j] = scale * text_i . image_j, with a learnt scale that starts at 1/0.07 and is clamped at
100. loss = the mean of the cross-entropies over rows and over columns, the diagonal being right. Another true partner
(the same image, or an image that has the same text) is no negative: it is left out of the softmax.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import Contrast
from trainers.batch import Batch
from trainers.encoder import Stream
from trainers.objectives.itm import mean_state
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Sizes

if TYPE_CHECKING:
    from trainers.model import VisionLanguageModel

FIRST_SCALE = 1 / 0.07
LARGEST_SCALE = 100.0


@OBJECTIVES.add("itc")
class ImageTextContrast(Objective):
    settings: Contrast

    def __init__(self, settings: Contrast, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.text = nn.Linear(sizes.hidden, settings.width, bias=False)
        self.vision = nn.Linear(sizes.hidden, settings.width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, model: "VisionLanguageModel", batch: Batch, random: torch.Generator) -> Outcome:
        streams = model.encode(batch.text, batch.vision)
        texts, images = self.embed_text(streams["text"]), self.embed_vision(streams["vision"])
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        loss, right = contrast(texts, images, scale, batch.partners)
        return Outcome(loss, {"accuracy": right, "scale": scale.detach()})

    def embed_text(self, stream: Stream) -> Tensor:
        """Last text states -> (B, width), of length 1."""
        return functional.normalize(self.text(stream.states[:, 0]).float(), dim=-1)

    def embed_vision(self, stream: Stream) -> Tensor:
        """Last vision states -> (B, width), of length 1."""
        return functional.normalize(self.vision(mean_state(stream.states, stream.present)).float(), dim=-1)


def contrast(texts: Tensor, images: Tensor, scale: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the share of texts whose own image is nearest: (B, width), (B, width), (), (B, B) bool -> (), ()."""
    rows = torch.arange(len(texts), device=texts.device)
    others = partners & ~torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    logits = (scale * texts @ images.t()).masked_fill(others, -torch.inf)
    loss = (functional.cross_entropy(logits, rows) + functional.cross_entropy(logits.t(), rows)) / 2
    return loss, (logits.argmax(1) == rows).float().mean().detach()
