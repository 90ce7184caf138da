"""Image-text contrast: symmetric InfoNCE over the batch, all ranks' together (CLIP, section 2.3).

A text and an image are the states that stand for them, projected to the joint space and scaled to length 1.
logits[i, j] = text_i . image_j / temperature. The temperature is learnt as the log of its inverse (CLIP) between two
bounds, or fixed. loss = the mean of the cross-entropies over rows and over columns, the diagonal being right. Another
true partner (the same image, or an image that has the same text) is no negative: it is left out of the softmax.
With label smoothing e the right answer's target is 1 - e, and e is spread over all that are in the softmax (ALIGN).

With momentum (ALBEF, section 3.2; BriVL without soft targets) the answers among which a text or image finds its own are
not the towers' but their twins', of this batch and of a queue of former ones: (B, width) queries, (B + Q, width) keys.
targets = a softmax(the twins' logits) + (1 - a) true, where `true` is shared evenly by the true partners in the batch.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import Contrast
from trainers.objectives.gathering import Everyone
from trainers.objectives.joint_space import JointSpace, cosines
from trainers.objectives.momentum import Queue, Twins
from trainers.objectives.objective import OBJECTIVES, Outcome, Sizes

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel
    from trainers.network.towers import Towers


class Temperature(nn.Module):
    """What similarities are divided by; here is the factor 1 / temperature, as `log_scale`."""

    def __init__(self, first: float, learnt: bool, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.range = (-math.log(bounds[1]), -math.log(bounds[0]))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(first)), requires_grad=learnt)

    def forward(self) -> Tensor:
        """(): the factor."""
        if not self.training:
            return self.log_scale.clamp(*self.range).exp()
        # The parameter itself is kept in bounds, so that it never waits beyond them without a gradient. By `data`, as
        # a step may ask twice, and its backward pass needs what it asked for first.
        self.log_scale.data.clamp_(*self.range)
        return self.log_scale.exp()


@OBJECTIVES.add("itc")
class ImageTextContrast(JointSpace):
    settings: Contrast

    def __init__(self, settings: Contrast, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.scale = Temperature(settings.temperature, settings.learnt, settings.bounds)
        self.twins: Twins | None = None
        self.queue = Queue(settings.momentum.queue, settings.width) if settings.momentum else None

    def ready(self, model: "VisionLanguageModel") -> None:
        if self.settings.momentum:
            self.twins = Twins(model, self, self.settings.momentum)

    def forward(self, towers: "Towers", random: torch.Generator) -> Outcome:
        scale = self.scale()
        texts, images = self.embedded(towers)
        if self.twins is None:
            everyone = Everyone(towers.batch)
            loss, right = contrast(
                everyone.rows(texts), everyone.rows(images), scale, everyone.partners, self.settings.smoothing
            )
        else:
            loss, right = self._against_twins(towers, texts, images, scale)
        return Outcome(loss, {"accuracy": right, "scale": scale.detach()})

    def similarities(self, towers: "Towers") -> Tensor:
        """(B, B) logits of a batch's texts and images, without a gradient."""
        # With the towers' graph, as the step's other objectives reuse what is computed here.
        texts, images = self.embedded(towers)
        return (self.scale() * cosines(texts, images)).detach()

    def _against_twins(self, towers: "Towers", texts: Tensor, images: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        assert self.twins is not None
        assert self.queue is not None
        if self.training:
            self.twins.follow(towers.model, self)
        everyone = Everyone(towers.batch)
        twin_texts, twin_images = map(everyone.rows, self.twins.embedded(towers.batch))
        ways = (
            (everyone.rows(texts), twin_texts, torch.cat([twin_images, self.queue.images]), everyone.partners),
            (everyone.rows(images), twin_images, torch.cat([twin_texts, self.queue.texts]), everyone.partners.t()),
        )
        losses, right = [], texts.new_zeros(())
        for queries, twins, keys, true in ways:
            there = torch.cat([true.new_ones(true.shape[1]), self.queue.filled])
            logits = (scale * cosines(queries, keys)).masked_fill(~there, -torch.inf)
            soft = (scale.detach() * cosines(twins, keys)).masked_fill(~there, -torch.inf).softmax(-1)
            shared = functional.pad(true / true.sum(-1, keepdim=True), (0, self.queue.size))
            losses.append(soft_cross_entropy(logits, torch.lerp(shared, soft, self.twins.soft)))
            right += shared.gather(1, logits.argmax(-1, keepdim=True)).gt(0).float().mean() / 2
        if self.training:
            self.queue.put(twin_texts, twin_images)
        return torch.stack(losses).mean(), right.detach()


def contrast(
    texts: Tensor, images: Tensor, scale: Tensor, partners: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The loss and the share of texts whose own image is nearest: (B, width), (B, width), (), (B, B) bool -> (), ()."""
    own = torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    left_out = partners & ~own
    logits = (scale * cosines(texts, images)).masked_fill(left_out, -torch.inf)
    loss = texts.new_zeros(())
    for answers, barred in ((logits, left_out), (logits.t(), left_out.t())):
        logs = functional.log_softmax(answers, -1)
        right = logs.diagonal()
        if smoothing:
            spread = logs.masked_fill(barred, 0).sum(-1) / (~barred).sum(-1)
            right = (1 - smoothing) * right + smoothing * spread
        loss = loss - right.mean() / 2
    rows = torch.arange(len(texts), device=texts.device)
    return loss, (logits.argmax(1) == rows).float().mean().detach()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum(targets * log softmax(logits)), the mean over rows; (N, K) each. Where a logit is -inf the target is 0."""
    logs = functional.log_softmax(logits, -1).masked_fill(targets == 0, 0)
    return -(targets * logs).sum(-1).mean()
