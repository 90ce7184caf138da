"""What one step has computed of a batch so far, so that its objectives share it."""

from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from trainers.data.batch import Batch, TextInput, VisionInput
from trainers.network.streams import Stream, Streams, Wanted
from trainers.network.view import View

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


class Towers:
    """A batch's states after the blocks in which each modality is alone; computed when first asked for."""

    def __init__(self, model: "VisionLanguageModel", batch: Batch) -> None:
        self.model, self.batch = model, batch
        self._apart: dict[str, Stream] = {}

    @cached_property
    def text(self) -> Stream:
        assert self.batch.text is not None
        return self.text_of(self.batch.text, self._before)

    @cached_property
    def vision(self) -> Stream:
        assert self.batch.vision is not None
        return self.vision_of(self.batch.vision)

    def text_of(self, text: TextInput, before: int = 0) -> Stream:
        return self.model.encoder.alone({"text": self.model.text(text, before)})["text"]

    def vision_of(self, vision: VisionInput) -> Stream:
        return self.model.encoder.alone({"vision": self.model.vision(vision)})["vision"]

    def encode(self, view: View, wanted: Wanted | None = None) -> Streams:
        """The encoder's last states of a view; a tower whose input the view left as it was is not computed again.

        Only what is `wanted` of them means something; None is all.
        """
        streams: dict[str, Stream] = {}
        if view.vision is not None:
            streams["vision"] = self.vision if view.vision is self.batch.vision else self.vision_of(view.vision)
        if view.text is not None:
            kept = view.text is self.batch.text and (view.vision is None) == (self.batch.vision is None)
            before = streams["vision"].states.shape[1] if streams else 0
            streams["text"] = self.text if kept else self.text_of(view.text, before)
        return self.model.encoder.crossing(streams, wanted.of(streams) if wanted else None)

    def cross(self, texts: Tensor, images: Tensor, wanted: Wanted | None = None) -> Streams:
        """The encoder's last states of texts and images of the batch together, each (N,) int64; `wanted` as above."""
        streams = {"text": self.text.select(texts), "vision": self.vision.select(images)}
        return self.model.encoder.crossing(streams, wanted.of(streams) if wanted else None)

    def apart(self, modality: str) -> Stream:
        """A modality's last states when it goes through the whole encoder by itself."""
        if modality not in self._apart:
            stream = self.text if modality == "text" else self.vision
            self._apart[modality] = self.model.encoder.crossing({modality: stream})[modality]
        return self._apart[modality]

    @property
    def _before(self) -> int:
        """How many positions stand before the text's in a stack that is causal throughout."""
        return self.vision.states.shape[1] if self.batch.vision is not None and self.model.vision.causal else 0
