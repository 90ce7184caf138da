"""Twins of the towers that follow them slowly, and a queue of what they made of former batches (MoCo; ALBEF, 3.1).

A twin's weights are w' <- decay w' + (1 - decay) w before each training batch (with `accumulate` a step has several);
the first takes w as it is, so that weights which were loaded after the model was built are followed as well. Buffers
are copied. The queue holds the newest keys in order of age; places that were never filled are nobody's negatives. It
does not know partners, as ALBEF's: another caption of an image that it holds counts as a negative. All of it is in the
state_dict.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.model_recipe import Momentum
from trainers.data.batch import Batch
from trainers.network.encoder import Encoder
from trainers.network.streams import Stream
from trainers.objectives.joint_space import JointSpace, unit

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


class Twins(nn.Module):
    """Twins of both embeddings, of the encoder as far as the joint space needs it, and of the projections."""

    updates: Tensor
    """() int64: how many so far."""

    def __init__(self, model: "VisionLanguageModel", space: JointSpace, settings: Momentum) -> None:
        super().__init__()
        self.settings = settings
        self.at_end = space.at_end
        self.text, self.vision = copy.deepcopy(model.text), copy.deepcopy(model.vision)
        self.encoder = copy.deepcopy(model.encoder)
        if not self.at_end:
            _cut(self.encoder)
        self.text_projection, self.vision_projection = copy.deepcopy(space.text), copy.deepcopy(space.vision)
        self.requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def follow(self, model: "VisionLanguageModel", space: JointSpace) -> None:
        """One step towards the weights as they are."""
        share = torch.where(self.updates == 0, 1.0, 1 - self.settings.decay)
        originals = {
            "text": model.text,
            "vision": model.vision,
            "encoder": model.encoder,
            "text_projection": space.text,
            "vision_projection": space.vision,
        }
        for name, original in originals.items():
            twin = self.get_submodule(name)
            parameters, buffers = dict(original.named_parameters()), dict(original.named_buffers())
            for key, parameter in twin.named_parameters():
                parameter.lerp_(parameters[key], share.to(parameter.dtype))
            for key, buffer in twin.named_buffers():
                buffer.copy_(buffers[key])
        self.updates.add_(1)

    @property
    def soft(self) -> Tensor:
        """(): the part of the targets that is what the twins think, as of the last update."""
        steps = (self.updates - 1).clamp(min=0)
        return self.settings.soft * ((steps + 1) / (self.settings.ramp + 1)).clamp(max=1)

    @torch.no_grad()
    def embedded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch's texts and images: (B, width) each, of length 1."""
        assert batch.text is not None
        assert batch.vision is not None
        text: Stream = self.text(batch.text)
        vision: Stream = self.vision(batch.vision)
        pass_through = self.encoder if self.at_end else self.encoder.alone
        return (
            unit(self.text_projection, pass_through({"text": text})["text"]),
            unit(self.vision_projection, pass_through({"vision": vision})["vision"]),
        )


class Queue(nn.Module):
    """A ring of the newest `size` texts and images in the joint space."""

    texts: Tensor
    """(size, width) float32."""
    images: Tensor
    written: Tensor
    """() int64: how many were ever put in."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("texts", torch.zeros(size, width))
        self.register_buffer("images", torch.zeros(size, width))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """(size,) bool"""
        return torch.arange(self.size, device=self.written.device) < self.written

    @torch.no_grad()
    def put(self, texts: Tensor, images: Tensor) -> None:
        """(B, width) each; the oldest make room."""
        kept = min(len(texts), self.size)
        skipped = len(texts) - kept
        if kept:
            places = (self.written + skipped + torch.arange(kept, device=self.written.device)) % self.size
            self.texts[places], self.images[places] = texts[skipped:], images[skipped:]
        self.written.add_(len(texts))


def _cut(encoder: Encoder) -> None:
    """Leave only the blocks before the first in which a modality looks at the other."""
    del encoder.blocks[encoder.first_crossing :]
    for number in [number for number in encoder.closing if int(number) >= encoder.first_crossing]:
        del encoder.closing[number]
