"""A CNN's last feature map: where grid features, and region features pooled from a CNN, begin."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.clip_model import extractors_clip, load_clip
from pipeline.errors import PairmillError
from pipeline.extractors.folding import fold
from pipeline.extractors.squares import square
from pipeline.extractors.state import load_in_order
from pipeline.hub import hub_name
from pipeline.normalised import Normalised, standardised
from pipeline.recipe import Backbone, Patch
from pipeline.weights import Weights


class FeatureMaps:
    """RGB images -> (images, channels, h, w) float32. Each is resized to a square, so that nothing is cropped away.

    The map is what timm's `forward_features` gives; in torchvision what enters the classifier's pooling; of an
    open_clip ResNet what enters the attention pooling. Raises PairmillError for a model that is none of a CNN, and for
    weights that do not fit.
    """

    def __init__(self, section: Backbone, weights: Weights, device: torch.device) -> None:
        self.image_size = section.image_size
        network = _NETWORKS[section.library](section, weights)
        network.model.eval().to(device)
        self._maps, self._normalised = network.maps, Normalised(standardised(network.mean, network.std), device)
        shape = (self.image_size, self.image_size, 3)
        probe = self._normalised([np.random.default_rng(0).integers(0, 256, shape, np.uint8)])
        self.channels = self._channels(section, probe)
        fold(network.model, self._maps, probe)
        network.model.to(memory_format=torch.channels_last)

    def _channels(self, section: Backbone, probe: torch.Tensor) -> int:
        try:
            with torch.inference_mode():
                maps = self._maps(probe)
        except (RuntimeError, ValueError, AssertionError) as error:  # of a fixed size, or shrunk to nothing
            raise PairmillError(
                f"{section.model} does not take pictures of {self.image_size} x {self.image_size}: {error}",
                "correct [extract] image_size",
            ) from None
        if maps.ndim != 4:
            raise _no_cnn(section)
        return int(maps.shape[1])

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """RGB uint8 (h, w, 3) -> (image_size, image_size, 3)."""
        return square(image, self.image_size)

    @torch.inference_mode()
    def __call__(self, squares: Sequence[np.ndarray]) -> torch.Tensor:
        return self._maps(self._normalised(squares)).float()


@dataclass(frozen=True)
class _Network:
    model: torch.nn.Module
    maps: Callable[[torch.Tensor], torch.Tensor]
    """(B, 3, S, S), normalised -> (B, channels, h, w): some part of `model` at work."""
    mean: Sequence[float]
    std: Sequence[float]


def _timm(section: Backbone, weights: Weights) -> _Network:
    import timm

    assert weights.path is not None
    try:
        model: Any = timm.create_model(timm_name(section), pretrained=False)
    except Exception as error:  # some names make timm look on a hub, or on this disk
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PairmillError(f"timm has no model {section.model!r}: {said}", "see timm.list_models()") from None
    load_in_order(model, weights.path)
    # Its transformers with windows give (B, h, w, channels).
    last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    maps = (lambda x: model.forward_features(x).permute(0, 3, 1, 2)) if last else model.forward_features
    return _Network(model, maps, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def _torchvision(section: Backbone, weights: Weights) -> _Network:
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    assert weights.path is not None
    try:
        published = torchvision.models.get_model_weights(section.model)
        with warnings.catch_warnings(action="ignore"):  # of how some initialise what is overwritten below
            model = torchvision.models.get_model(section.model, weights=None)
    except ValueError as error:
        raise PairmillError(
            f"torchvision has no model {section.model!r}: {error}", "see torchvision.models.list_models()"
        ) from None
    load_in_order(model, weights.path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of nodes that only training has
            nodes = get_graph_node_names(model.eval())[1]
            pooling = max(place for place, node in enumerate(nodes) if node in _POOLING)
            cut = create_feature_extractor(model, {nodes[pooling - 1]: "maps"})
    except Exception:  # tracing what is none may end in anything
        raise _no_cnn(section) from None
    how = published["DEFAULT"].transforms()
    return _Network(cut, lambda x: cut(x)["maps"], how.mean, how.std)


_POOLING = {"avgpool", "adaptive_avg_pool2d", "mean"}
"""What the module or function is called with which a classifier of torchvision's begins, by their traces."""


def _open_clip(section: Backbone, weights: Weights) -> _Network:
    visual: Any = load_clip(extractors_clip(section, weights), torch.device("cpu")).model.visual
    if not hasattr(visual, "attnpool"):
        raise _no_cnn(section)
    visual.attnpool = torch.nn.Identity()
    return _Network(visual, visual, visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"])


def _no_cnn(section: Backbone) -> PairmillError:
    return PairmillError(f"{section.model} gives no feature maps of a CNN", "name a CNN in [extract] model")


def timm_name(section: Backbone | Patch) -> str:
    """With the tag of weights from the hub, which says how they want their pictures."""
    tag = hub_name(section.weights)
    return f"{section.model.split('.')[0]}.{tag}" if tag else section.model


_NETWORKS: dict[str, Callable[[Backbone, Weights], _Network]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
}
