"""How surely a picture shows nudity, by the detector that the package nudenet carries (YOLOv8n at 320 pixels).

The package's labels without its confidence cut-off and its suppression of overlapping boxes: a rule has its own
threshold, and the greatest confidence of an exposed part does not hang on how often it was found.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pipeline.errors import PairmillError
from pipeline.signals.images import Measure
from pipeline.store.atomic import file_sha256

VERSION = 1
_SIDE = 320
_BOX = 4  # the first rows of the detector's answer; then comes a row for each class
_EXPOSED = {"buttocks": 2, "female breast": 3, "female genitalia": 4, "anus": 6, "male genitalia": 14}


@dataclass(frozen=True)
class Nsfw:
    """The greatest confidence, 0 to 1, of exposed buttocks, female breasts, genitalia or anus; 0 where none is seen."""

    name: str = "nsfw"
    batch_size: int = 16
    schema = pa.schema([("nsfw", pa.float32())])

    @cached_property
    def identity(self) -> Any:
        return ["nsfw", VERSION, file_sha256(_model())]

    def measurer(self) -> Measure:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # every core has a worker of its own
        session = onnxruntime.InferenceSession(str(_model()), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()

        def measure(pictures: Sequence[np.ndarray]) -> dict[str, pa.Array]:
            squares = np.concatenate([_square(picture) for picture in pictures])
            scores = session.run(None, {given.name: squares})[0][:, _BOX:]
            # An anchor speaks for its likeliest class only, as in the package.
            likeliest = scores.argmax(axis=1)
            exposed = np.isin(likeliest, list(_EXPOSED.values()))
            found = np.where(exposed, scores.max(axis=1), 0).max(axis=1)
            return {"nsfw": pa.array(found.astype(np.float32))}

        return measure


def _model() -> Path:
    spec = importlib.util.find_spec("nudenet")
    path = Path(spec.origin).with_name("320n.onnx") if spec and spec.origin else None
    if path is None or not path.is_file():
        raise PairmillError(
            "the signal nsfw needs the package nudenet", "install it, or bring a column nsfw in the lists"
        )
    return path


def _square(picture: np.ndarray) -> np.ndarray:
    """(1, 3, 320, 320) float32: padded with black on the right or below, channels in the order that nudenet feeds."""
    height, width = picture.shape[:2]
    side = max(height, width)
    padded = cv2.copyMakeBorder(picture, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)
    return cv2.dnn.blobFromImage(padded, 1 / 255, (_SIDE, _SIDE), (0, 0, 0), swapRB=True, crop=False)
