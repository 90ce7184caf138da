"""Region features: a detector's boxes and class distributions, with features pooled from its neck."""

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from torchvision.ops import batched_nms, roi_align

from pipeline.errors import PairmillError
from pipeline.extractors.cnn import FeatureMaps
from pipeline.recipe import Region
from pipeline.store.features import Column
from pipeline.weights import Weights

CANDIDATES = 300  # anchors an image that enter the suppression, best first
POOLED = 3  # RoIAlign's cells a side, averaged
PADDING = 114  # the grey that ultralytics pads with in training
WHOLE_IMAGE = -1  # the class of the box that is the image itself


def import_ultralytics() -> ModuleType:
    """ultralytics as a library: pickles refused, nothing installed, nothing reported."""
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "1"
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    import ultralytics

    return ultralytics


class RegionExtractor:
    """Boxes (n x 4: x1 y1 x2 y2 in [0, 1]), the first of them the whole image, then the detector's best.

    After class-wise suppression come the boxes over the confidence threshold, at most `max_boxes` and at least
    `min_boxes` in all: where too few pass, the next best fill up. `topk_values` is the class scores divided by their
    sum (a YOLO head scores each class by itself), cut to the k largest; the whole image has no class and zeros
    there. `features` are RoIAligned from every level of the neck and concatenated, or from the CNN's last map.
    """

    def __init__(self, section: Region, weights: Weights) -> None:
        self.section = section
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = _load(section, weights).to(self.device).eval()
        head = self.model.model[-1]
        head.end2end = False  # the full class distribution is in the one-to-many branch
        self._classes = int(head.nc)
        self._cnn = FeatureMaps(section.cnn, weights.cnn) if section.cnn and weights.cnn else None
        self._neck: list[torch.Tensor] = []
        head.register_forward_pre_hook(lambda _, inputs: setattr(self, "_neck", list(inputs[0])))
        top_k = min(section.top_k, self._classes)
        dimension = self._cnn.channels if self._cnn else sum(level.shape[1] for level in self._probe())
        self.identity: dict[str, Any] = {
            "model": weights.name if weights.path else _architecture(section),
            "trained": weights.path is not None,
            "classes": [self.model.names[index] for index in range(self._classes)],
        }
        if section.cnn and weights.cnn:
            self.identity |= {"pooled_from": section.cnn.model, "pooled_from_sha256": weights.cnn.sha256}
        self.columns = {
            "boxes": Column("float32", (4,)),
            "classes": Column("int32"),
            "confidences": Column("float32"),
            "topk_ids": Column("int32", (top_k,)),
            "topk_values": Column("float32", (top_k,)),
            "features": Column("float16", (dimension,), tensor=True),
        }

    def _probe(self) -> list[torch.Tensor]:
        with torch.inference_mode():
            self.model(torch.zeros(1, 3, 64, 64, device=self.device))
        return self._neck

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        size = self.section.image_size
        batch = np.full((len(images), size, size, 3), PADDING, np.uint8)
        shapes = []
        for position, image in enumerate(images):
            height, width = image.shape[:2]
            scale = size / max(height, width)
            shape = max(1, round(height * scale)), max(1, round(width * scale))
            batch[position, : shape[0], : shape[1]] = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR)
            shapes.append(shape)
        tensor = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float() / 255
        predictions = self.model(tensor)
        while not isinstance(predictions, torch.Tensor):
            predictions = predictions[0]  # a segmentation head wraps the boxes once more, with its masks
        maps = self._cnn(images) if self._cnn else None
        return [
            self._rows(predictions[position], position, shape, None if maps is None else maps[position : position + 1])
            for position, shape in enumerate(shapes)
        ]

    def _rows(
        self, prediction: torch.Tensor, image: int, shape: tuple[int, int], cnn_map: torch.Tensor | None
    ) -> dict[str, np.ndarray]:
        """`prediction`: (4 + classes + extra, anchors), boxes as centre and size in pixels of the padded square.

        `shape`: height and width of the picture in that square. `cnn_map`: (1, channels, h, w) of the whole picture.
        """
        limit = torch.tensor([shape[1], shape[0]] * 2, device=prediction.device, dtype=torch.float32)
        centre, extent = prediction[:2].T, prediction[2:4].T
        boxes = torch.cat([centre - extent / 2, centre + extent / 2], 1).clamp(min=0).minimum(limit)
        scores = prediction[4 : 4 + self._classes].T
        # A box in the padding has no area left; it is no candidate.
        inside = (boxes[:, 2:] - boxes[:, :2]).min(1).values >= 1
        boxes, scores = boxes[inside], scores[inside]
        confidences, classes = scores.max(1)
        best = confidences.topk(min(CANDIDATES, len(confidences))).indices
        boxes, scores, confidences, classes = boxes[best], scores[best], confidences[best], classes[best]
        chosen = batched_nms(boxes, confidences, classes, self.section.iou)
        passing = int((confidences[chosen] >= self.section.confidence).sum())
        wanted = min(max(passing + 1, self.section.min_boxes), self.section.max_boxes) - 1
        if len(chosen) < wanted:
            # Suppression left too few: the best of the suppressed fill up, as in bottom-up attention.
            spare = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
            spare[chosen] = False
            chosen = torch.cat([chosen, spare.nonzero().flatten()])
        chosen = chosen[:wanted]

        distribution = scores[chosen] / scores[chosen].sum(1, keepdim=True).clamp(min=1e-12)
        values, ids = distribution.topk(self.columns["topk_values"].shape[0], dim=1)
        boxes = torch.cat([limit.new_tensor([[0, 0, shape[1], shape[0]]]), boxes[chosen]])

        pooled = self._from_neck(boxes, image) if cnn_map is None else _pool(cnn_map, boxes / limit, (1, 1))

        def with_image(rows: torch.Tensor, first: float) -> np.ndarray:
            return torch.cat([rows.new_full((1, *rows.shape[1:]), first), rows]).cpu().numpy()

        return {
            "boxes": (boxes / limit).cpu().numpy(),
            "classes": with_image(classes[chosen].int(), WHOLE_IMAGE),
            "confidences": with_image(confidences[chosen], 1.0),
            "topk_ids": with_image(ids.int(), 0),
            "topk_values": with_image(values, 0.0),
            "features": pooled.cpu().numpy(),
        }

    def _from_neck(self, boxes: torch.Tensor, image: int) -> torch.Tensor:
        """(n, sum of the levels' channels), for boxes in pixels of the padded square."""
        side = self.section.image_size
        levels = [level[image : image + 1].float() for level in self._neck]
        return torch.cat([_pool(level, boxes, (side, side)) for level in levels], 1)


def _pool(level: torch.Tensor, boxes: torch.Tensor, extent: tuple[float, float]) -> torch.Tensor:
    """RoIAlign, averaged over its cells: (n, channels).

    `level`: (1, channels, h, w), which covers `extent` (height, width) in the boxes' own unit.
    """
    height, width = level.shape[2:]
    to_cells = torch.tensor([width / extent[1], height / extent[0]] * 2, device=boxes.device)
    return roi_align(level, [boxes * to_cells], POOLED, 1.0, sampling_ratio=2, aligned=True).mean((2, 3))


def _architecture(section: Region) -> str:
    return section.weights[0].rsplit("/", 1)[-1].removesuffix(".pt") + ".yaml"


def _load(section: Region, weights: Weights) -> Any:
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel, load_checkpoint

    if weights.path:
        try:
            model, _ = load_checkpoint(str(weights.path))
        except Exception as error:
            raise PairmillError(
                f"cannot load the detector {weights.path}: {(str(error).splitlines() or [type(error).__name__])[0]}",
                "is it an ultralytics .pt file?",
            ) from error
        if not hasattr(model.model[-1], "nc"):
            raise PairmillError(f"{weights.path} is no detector", "name a detection or segmentation model")
        return model.float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = DetectionModel(_architecture(section), verbose=False)
        except OSError as error:
            raise PairmillError(
                f"there is no {' or '.join(section.weights)}, and ultralytics knows no {_architecture(section)}",
                "correct [extract] weights, or set PAIRMILL_WEIGHTS",
            ) from error
        _settle(model)
        return model


def _settle(model: torch.nn.Module) -> None:
    """Set an untrained network's normalisation to the statistics of fixed random pictures.

    As initialised, each layer shrinks its input and the neck is all but zero; so settled, it is a random projection
    that still tells one picture from another.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # average over all batches alike
    model.train()
    with torch.no_grad():
        for _ in range(8):
            model(_random_pictures(16, 256))
    model.eval()


def _random_pictures(number: int, size: int) -> torch.Tensor:
    """Blots of several sizes on white, half of them with padding: they vary at every scale, as pictures do."""

    def blots(cells: int, channels: int) -> torch.Tensor:
        return torch.nn.functional.interpolate(
            torch.rand(number, channels, cells, cells), (size, size), mode="bilinear"
        )

    pictures = torch.stack([blots(cells, 3) for cells in (2, 5, 13, 40)]).mean(0)
    pictures = ((pictures - 0.5) * 3 + 0.5).clamp(0, 1)
    pictures = torch.where(blots(6, 1) > 0.5, pictures, 1.0)
    pictures[: number // 2, :, :, : size // 5] = PADDING / 255
    return pictures
