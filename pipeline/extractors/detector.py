"""A detector of ultralytics', made to give what region features need: every candidate's scores, and the neck's maps."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pipeline.errors import PairmillError
from pipeline.weights import ARCHITECTURES, UNTRAINED, Weights

PADDING = 114  # the grey that ultralytics pads with in training


def import_ultralytics() -> ModuleType:
    """ultralytics as a library: pickles refused, nothing installed, nothing reported."""
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "1"
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    import ultralytics
    from ultralytics.nn import tasks

    vars(tasks)["SAFE_LOAD"] = True  # it reads its environment once: somebody may have imported it before us
    return ultralytics


@dataclass
class Candidates:
    """What a detector sees in B pictures of S x S pixels, before anything is suppressed or left out."""

    boxes: torch.Tensor
    """(B, 4, A) float32: x1 y1 x2 y2 in pixels; they may reach over the edge."""
    logits: torch.Tensor
    """(B, classes, A) float32: each class by itself, as its sigmoid says."""
    neck: list[torch.Tensor]
    """(B, channels, S / stride, S / stride) each, from the finest level to the coarsest: what the head reads."""


class Detector:
    """Any detector that ultralytics loads and that has a fixed set of classes, settled for inference on `device`.

    YOLO's heads are asked for their dense branch alone: masks, poses and the one-to-one branch are not computed (of a
    model that was saved without its dense branch, the one-to-one branch is read). RT-DETR's is asked for its queries,
    in float32 whatever autocast says. In both, boxes are decoded in float32: 11 bits do not hold a box.

    `weights.path` is a checkpoint, or an architecture's .yaml; without any, ultralytics' own `architecture` is built.
    What is not a checkpoint is untrained, from a fixed seed. Raises PairmillError, naming the file, for what is no
    detector.
    """

    def __init__(self, weights: Weights, architecture: str, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.trained = weights.sha256 != UNTRAINED
        source = str(weights.path or architecture)
        self.name = Path(source).name
        model = _checkpoint(source) if self.trained else _untrained(source)
        try:
            self._adapt(model, source)
            seen = self(torch.zeros(1, 3, size, size, device=device))
            names = model.names if isinstance(model.names, dict) else dict(enumerate(model.names))
            self.classes = [str(names[index]) for index in range(seen.logits.shape[1])]
            self.levels = [tuple(level.shape[1:]) for level in seen.neck]
            """(channels, h, w) of the neck's maps."""
        except PairmillError:
            raise
        except Exception as error:  # a checkpoint or an architecture may be anything
            raise PairmillError(
                f"the detector {source} does not run at {size} pixels: {_first_line(error)}",
                "is image_size a multiple of its coarsest stride?",
            ) from error

    def _adapt(self, model: Any, source: str) -> None:
        from ultralytics.nn.modules import OBB, Detect, RTDETRDecoder

        head = model.model[-1]
        self.stretches = isinstance(head, RTDETRDecoder)
        """Whether pictures are stretched to the square, as RT-DETR is trained, and not padded to it."""
        fixed = isinstance(head, Detect | RTDETRDecoder) and not isinstance(head, OBB) and not hasattr(head, "lrpc")
        if not fixed:
            raise PairmillError(
                f"{source} is no detector of upright boxes with a fixed set of classes",
                "name a detection or segmentation model",
            )
        if not self.stretches:
            head.end2end = False  # keep the dense branch, where there is one, when the other is dropped
            head.xyxy = True
        model.fuse(verbose=False)
        head.forward = partial(self._queries if self.stretches else self._anchors, head)
        self.model = model.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> Candidates:
        """`pixels`: (B, 3, S, S) float32, RGB in [0, 1]."""
        return self.model(pixels.contiguous(memory_format=torch.channels_last))

    def _anchors(self, head: Any, inputs: list[torch.Tensor], *text: torch.Tensor) -> Candidates:
        """In the place of a YOLO head's forward: `inputs` are the neck's maps (and, for YOLOE, the classes' texts)."""
        from ultralytics.nn.modules import Detect, WorldDetect, YOLOEDetect

        neck = list(inputs[: head.nl])
        raw: Any
        if isinstance(head, WorldDetect):
            _, raw = WorldDetect.forward(head, inputs, *text)
        else:
            branch = head.one2many if head.cv2 is not None else head.one2one
            parts = {name: branch[name] for name in ("box_head", "cls_head", "contrastive_head") if name in branch}
            kind = YOLOEDetect if isinstance(head, YOLOEDetect) else Detect
            raw = kind.forward_head(head, inputs, **parts)
        with torch.autocast(self.device.type, enabled=False):
            logits = raw["scores"].float()
            return Candidates(head._get_decode_boxes(raw | {"boxes": raw["boxes"].float()}), logits, neck)

    def _queries(self, head: Any, inputs: list[torch.Tensor], batch: None = None) -> Candidates:
        """In the place of RT-DETR's decoder's forward."""
        from ultralytics.nn.modules import RTDETRDecoder

        with torch.autocast(self.device.type, enabled=False):
            _, (boxes, logits, *_) = RTDETRDecoder.forward(head, [level.float() for level in inputs])
            centre, extent = (boxes[-1] * self.size).transpose(1, 2).chunk(2, 1)
            corners = torch.cat([centre - extent / 2, centre + extent / 2], 1)
            return Candidates(corners, logits[-1].transpose(1, 2), list(inputs))


def architecture_of(weights: Sequence[str]) -> str:
    """The ultralytics architecture that stands in where none of a recipe's `weights` is found."""
    name = weights[0].rsplit("/", 1)[-1]
    return name if name.endswith(ARCHITECTURES) else name.removesuffix(".pt") + ".yaml"


def _checkpoint(path: str) -> Any:
    import_ultralytics()
    from ultralytics.nn.tasks import load_checkpoint

    try:
        model, _ = load_checkpoint(path)
        return model.float()
    except Exception as error:  # whatever a damaged, foreign or hostile file makes of the readers
        raise PairmillError(
            f"cannot load the detector {path}: {_first_line(error)}", "is it an ultralytics .pt file?"
        ) from error


def _untrained(architecture: str) -> Any:
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, WorldModel, yaml_model_load

    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            layers = yaml_model_load(architecture)
            head = layers["head"][-1][2]
            kind = {"RTDETRDecoder": RTDETRDetectionModel, "WorldDetect": WorldModel}.get(head, DetectionModel)
            model = kind(layers, verbose=False)
        except Exception as error:  # no such name, no YAML, or no network
            raise PairmillError(
                f"there are no weights, and ultralytics builds no {architecture}: {_first_line(error)}",
                "correct [extract] weights, or set PAIRMILL_WEIGHTS",
            ) from error
        settle(model)
        return model


def settle(model: torch.nn.Module) -> None:
    """Set an untrained network's normalisation to the statistics of fixed random pictures.

    As initialised, each layer shrinks its input and the neck is all but zero; so settled, it is a random projection
    that still tells one picture from another.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # average over all batches alike
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(_random_pictures(8, 256))
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


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
