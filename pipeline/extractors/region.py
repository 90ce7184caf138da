"""Region features: a detector's boxes and class distributions, with features pooled from its neck or from a CNN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.extractors.choosing import choose
from pipeline.extractors.cnn import FeatureMaps
from pipeline.extractors.detector import PADDING, Detector, architecture_of
from pipeline.extractors.pooling import concatenated, from_suited, pool, suited
from pipeline.extractors.precision import autocast
from pipeline.recipe import Region
from pipeline.store.features import Column
from pipeline.weights import Weights

WHOLE_IMAGE = -1  # the class of the box that is the image itself


@dataclass
class Prepared:
    """A picture as the detector takes it, and as the CNN does where features come from one."""

    square: np.ndarray
    """(S, S, 3) uint8: the picture, resized to fit, in the upper left; padding in the rest."""
    extent: tuple[int, int]
    """Width and height of the picture in the square."""
    of_cnn: Any = None


class RegionExtractor:
    """`boxes` (n x 4: x1 y1 x2 y2 in [0, 1]), the first of them the whole image, then the detector's best (`choose`).

    In all they are `min_boxes` to `max_boxes`. `topk_values` is the class scores divided by their sum (a detector of
    ultralytics' scores each class by itself), cut to the k largest, with their classes in `topk_ids`; the whole image
    has no class, confidence 1 and zeros there. `features` are RoIAligned from every level of the neck and concatenated;
    or from the level that suits the box, with zeros up to the widest level and the level's number in `levels`; or from
    the CNN's last map. `identity["classes"]` names the classes, `pipeline.store.tags` an image's.
    """

    def __init__(self, section: Region, weights: Weights, device: torch.device) -> None:
        self.section, self.device = section, device
        self.detector = Detector(weights, architecture_of(section.weights), section.image_size, device)
        self.cnn = FeatureMaps(section.cnn, weights.cnn, device) if section.cnn and weights.cnn else None
        self._memory = torch.empty(0, device=device)
        channels = [level[0] for level in self.detector.levels]
        self.strides = [section.image_size / level[2] for level in self.detector.levels]
        self.identity: dict[str, Any] = {
            "model": self.detector.name,
            "trained": self.detector.trained,
            "classes": self.detector.classes,
        }
        if weights.architecture_sha256:
            self.identity["architecture_sha256"] = weights.architecture_sha256
        if section.cnn and weights.cnn:
            self.identity |= {"pooled_from": section.cnn.model, "pooled_from_sha256": weights.cnn.sha256}
        else:
            self.identity["neck"] = {"channels": channels, "strides": self.strides}
        one = section.levels == "one"
        width = self.cnn.channels if self.cnn else max(channels) if one else sum(channels)
        top_k = min(section.top_k, len(self.detector.classes))
        self.columns = {
            "boxes": Column("float32", (4,)),
            "classes": Column("int32"),
            "confidences": Column("float32"),
            "topk_ids": Column("int32", (top_k,)),
            "topk_values": Column("float32", (top_k,)),
            **({"levels": Column("int32")} if one else {}),
            "features": Column(section.dtype, (width,), tensor=True),
        }

    def prepare(self, image: np.ndarray) -> Prepared:
        size = self.section.image_size
        height, width = image.shape[:2]
        scale = size / max(height, width)
        stretched = self.detector.stretches
        extent = (size, size) if stretched else (max(1, round(width * scale)), max(1, round(height * scale)))
        square = np.full((size, size, 3), PADDING, np.uint8)
        square[: extent[1], : extent[0]] = cv2.resize(image, extent, interpolation=cv2.INTER_LINEAR)
        return Prepared(square, extent, self.cnn.prepare(image) if self.cnn else None)

    @torch.inference_mode()
    def __call__(self, prepared: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        section = self.section
        extents = torch.tensor([image.extent for image in prepared], device=self.device, dtype=torch.float32)
        with autocast(section, self.device):
            candidates = self.detector(self._pixels([image.square for image in prepared]))
            of_cnn = self.cnn([image.of_cnn for image in prepared]) if self.cnn else None
        chosen = choose(
            candidates,
            extents,
            least=section.min_boxes - 1,
            most=section.max_boxes - 1,
            confidence=section.confidence,
            iou=section.iou,
        )
        whole = torch.cat([torch.zeros_like(extents), extents], 1)[:, None]
        boxes = torch.cat([whole, chosen.boxes], 1)
        relative = boxes / whole[..., 2:].repeat(1, 1, 2)
        shares = chosen.scores / chosen.scores.sum(2, keepdim=True).clamp(min=1e-12)
        values, ids = shares.topk(self.columns["topk_ids"].shape[0], dim=2)
        arrays = {
            "boxes": relative,
            "classes": _after(WHOLE_IMAGE, chosen.classes.int()),
            "confidences": _after(1.0, chosen.confidences),
            "topk_ids": _after(0, ids.int()),
            "topk_values": _after(0.0, values),
        }
        if of_cnn is not None:
            arrays["features"] = pool(of_cnn, relative)
        elif section.levels == "one":
            sides = (boxes[..., 2:] - boxes[..., :2]).prod(2).sqrt()
            arrays["levels"] = suited(sides, self.strides).int()
            arrays["features"] = from_suited(candidates.neck, boxes / section.image_size, arrays["levels"])
        else:
            arrays["features"] = concatenated(candidates.neck, boxes / section.image_size)
        if section.dtype == "float16":
            arrays["features"] = arrays["features"].half()
        numbers = (chosen.n + 1).tolist()
        batch = {name: values.cpu().numpy() for name, values in arrays.items()}
        return [{name: batch[name][index, :n] for name in self.columns} for index, n in enumerate(numbers)]

    def _pixels(self, squares: list[np.ndarray]) -> torch.Tensor:
        """(B, 3, S, S) float32 in [0, 1]. The memory is used again: on a CPU new pages cost more than the pictures."""
        if len(self._memory) < len(squares):
            self._memory = torch.empty((len(squares), *squares[0].shape), device=self.device)
        pixels = self._memory[: len(squares)].copy_(torch.from_numpy(np.stack(squares)).to(self.device))
        return pixels.div_(255).permute(0, 3, 1, 2)


def _after(first: float, values: torch.Tensor) -> torch.Tensor:
    """`values` (B, N, ...) with the whole image's own before them."""
    return torch.cat([values.new_full((len(values), 1, *values.shape[2:]), first), values], 1)
