"""A CNN's last feature map: where grid features, and region features pooled from a CNN, begin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import timm
import torch

from pipeline.errors import PairmillError
from pipeline.recipe import Cnn
from pipeline.weights import Weights


class FeatureMaps:
    """RGB images -> (images, channels, h, w). Each is resized to a square, so that nothing is cropped away."""

    def __init__(self, section: Cnn, weights: Weights) -> None:
        self.name, self.image_size = section.model, section.image_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = timm.create_model(section.model, pretrained=False)
        except RuntimeError as error:
            raise PairmillError(f"timm has no model {section.model!r}: {error}", "see timm.list_models()") from None
        assert weights.path is not None
        load_in_order(model, weights.path)
        self.model = cast(Any, model.to(self.device).eval())
        configuration = self.model.pretrained_cfg
        mean, std = configuration["mean"], configuration["std"]
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1) * 255
        self.channels = int(self.model.num_features)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        size = (self.image_size, self.image_size)
        squares = np.stack([cv2.resize(image, size, interpolation=_interpolation(image, size)) for image in images])
        tensor = torch.from_numpy(squares).to(self.device).permute(0, 3, 1, 2).float()
        maps: torch.Tensor = self.model.forward_features((tensor - self._mean) / self._std)
        if maps.ndim != 4 or maps.shape[1] != self.channels:
            raise PairmillError(f"{self.name} gives no feature maps of a CNN", "name a CNN in [extract] model")
        return maps


def _interpolation(image: np.ndarray, size: tuple[int, int]) -> int:
    return cv2.INTER_AREA if min(image.shape[:2]) > size[0] else cv2.INTER_CUBIC


def load_in_order(model: torch.nn.Module, path: Path) -> None:
    """Load a state dict whose names differ from the model's but whose tensors come in the same order and shapes."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: dict[str, torch.Tensor] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged, foreign or hostile file makes of the readers
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PairmillError(f"cannot load the weights {path}: {said}", "a state dict is wanted") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PairmillError(f"{path} is no state dict", "save one: torch.save(model.state_dict(), path)")
    own = model.state_dict()
    if own.keys() != state.keys():
        wanted = [name for name in own if not name.endswith("num_batches_tracked")]
        given = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
        if [own[name].shape for name in wanted] != [value.shape for value in given]:
            raise PairmillError(
                f"{path} does not fit the model: other tensors, or in another order", "correct [extract] weights"
            )
        state = dict(zip(wanted, given, strict=True))
    elif any(own[name].shape != value.shape for name, value in state.items()):
        raise PairmillError(f"{path} does not fit the model: tensors of other shapes", "correct [extract] weights")
    model.load_state_dict(state, strict=False)
