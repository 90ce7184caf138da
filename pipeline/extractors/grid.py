"""Grid features: the last feature map of a CNN (Pixel-BERT, SOHO, METER on a CNN)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.errors import PairmillError
from pipeline.recipe import Grid
from pipeline.store.features import Column
from pipeline.weights import Weights


class GridExtractor:
    """`features`: (cells * cells, channels) in row order. The image is resized to a square: nothing is cropped."""

    def __init__(self, section: Grid, weights: Weights) -> None:
        self.section = section
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = timm.create_model(section.model, pretrained=False)
        except RuntimeError as error:
            raise PairmillError(f"timm has no model {section.model!r}: {error}", "see timm.list_models()") from None
        assert weights.path is not None
        load_in_order(model, weights.path)
        self.model: Any = model.to(self.device).eval()
        configuration = self.model.pretrained_cfg
        mean, std = configuration["mean"], configuration["std"]
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1) * 255
        self.identity: dict[str, Any] = {
            "model": section.model,
            "trained": True,
            "grid": [section.cells, section.cells],
        }
        channels = int(self.model.num_features)
        self.columns = {"features": Column("float16", (channels,), tensor=True)}

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        size = (self.section.image_size, self.section.image_size)
        squares = np.stack([cv2.resize(image, size, interpolation=_interpolation(image, size)) for image in images])
        tensor = torch.from_numpy(squares).to(self.device).permute(0, 3, 1, 2).float()
        maps = self.model.forward_features((tensor - self._mean) / self._std)
        pooled = adaptive_avg_pool2d(maps, self.section.cells).flatten(2).transpose(1, 2)
        return [{"features": row} for row in pooled.half().cpu().numpy()]


def _interpolation(image: np.ndarray, size: tuple[int, int]) -> int:
    return cv2.INTER_AREA if min(image.shape[:2]) > size[0] else cv2.INTER_CUBIC


def load_in_order(model: torch.nn.Module, path: Path) -> None:
    """Load a state dict whose names differ from the model's but whose tensors come in the same order and shapes."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: dict[str, torch.Tensor] = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    if own.keys() != state.keys():
        wanted = [name for name in own if not name.endswith("num_batches_tracked")]
        given = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
        if [own[name].shape for name in wanted] != [value.shape for value in given]:
            raise PairmillError(
                f"{path} does not fit the model: other tensors, or in another order", "correct [extract] weights"
            )
        state = dict(zip(wanted, given, strict=True))
    model.load_state_dict(state, strict=False)
