"""Patch features: all tokens of a ViT, and what the ViT itself pools them to (ALBEF, METER, VLMo, CLIP)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.clip_model import extractors_clip, load_clip, unit
from pipeline.errors import PairmillError
from pipeline.extractors.cnn import timm_name
from pipeline.extractors.precision import autocast
from pipeline.extractors.squares import square
from pipeline.extractors.state import load_in_order
from pipeline.normalised import Normalised, standardised
from pipeline.recipe import Patch
from pipeline.store.features import Column
from pipeline.weights import Weights


class PatchExtractor:
    """`features`: (tokens, width), row by row of the image; `pooled`: (D,) float32, one an image.

    The tokens are those of the patches, after the last block and the final normalisation, as ALBEF (section 3.1) and
    METER (section 3.1) hand them to their fusion; class and register tokens are left out. Of open_clip they are what
    its tower gives with `output_tokens`: the few models that pool before they normalise give them as they were
    pooled, those with an attentional pooler (CoCa) the pooler's queries, which have no `grid`.

    `pooled` is, of open_clip, the unit vector in the joint space, from open_clip's own preprocessing (which crops to
    the middle square, unless the model says otherwise): the embedding that `filter`'s CLIP score is made of. Of timm
    it is what its classifier would read, from the whole picture, resized to a square.
    """

    def __init__(self, section: Patch, weights: Weights, device: torch.device) -> None:
        self.section, self.device = section, device
        self._tower = _TOWERS[section.library](section, weights, device)
        self.prepare: Callable[[np.ndarray], np.ndarray] = self._tower.prepare
        probe = self._tower.batch([self.prepare(np.zeros((8, 8, 3), np.uint8))])
        with torch.inference_mode():
            tokens, pooled = self._tower.forward(probe)
        if pooled.ndim != 2 or tokens.ndim not in (3, 4):
            raise _no_vit(section)
        self.identity: dict[str, Any] = {"model": section.model, "trained": weights.path is not None}
        rows, columns = self._tower.grid(probe.shape[2:]) if tokens.ndim == 3 else tokens.shape[1:3]
        if rows * columns == tokens[0, ..., 0].numel():
            self.identity["grid"] = [rows, columns]
        self.columns = {
            "features": Column(section.dtype, (tokens.shape[-1],), tensor=True),
            "pooled": Column("float32", (pooled.shape[1],), per_image=True),
        }

    @torch.inference_mode()
    def __call__(self, prepared: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        batch = self._tower.batch(prepared)
        with autocast(self.section, self.device):
            tokens, pooled = self._tower.forward(batch)
        vectors = unit(pooled) if self.section.library == "open_clip" else pooled.float().cpu().numpy()
        rows = zip(tokens.flatten(1, -2).float().cpu().numpy(), vectors, strict=True)
        return [{"features": features, "pooled": vector} for features, vector in rows]


@dataclass(frozen=True)
class _Tower:
    prepare: Callable[[np.ndarray], np.ndarray]
    """An RGB picture -> (height, width, 3) uint8, all of one size."""
    batch: Callable[[Sequence[np.ndarray]], torch.Tensor]
    """-> (B, 3, height, width) on the device."""
    forward: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """-> the tokens (B, n, width) or (B, rows, columns, width), and (B, D)."""
    grid: Callable[[Sequence[int]], tuple[int, int]]
    """Rows and columns of the patches that are cut out of a picture of (height, width)."""


def _open_clip(section: Patch, weights: Weights, device: torch.device) -> _Tower:
    clip = load_clip(extractors_clip(section, weights), device)
    visual: Any = clip.model.visual
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:  # a timm model, with a head of open_clip's
        forward, grid = _of_timm(trunk, lambda states: visual.head(trunk.forward_head(states)), section)
    elif hasattr(visual, "output_tokens"):
        visual.output_tokens = True
        forward, grid = (lambda batch: visual(batch)[::-1]), (lambda _: visual.grid_size)
    else:
        raise _no_vit(section)
    return _Tower(clip.prepare, clip.batch, forward, grid)


def _timm(section: Patch, weights: Weights, device: torch.device) -> _Tower:
    import timm

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        try:
            model: Any = timm.create_model(timm_name(section), pretrained=False)
        except RuntimeError as error:
            raise PairmillError(f"timm has no model {section.model!r}: {error}", "see timm.list_models()") from None
    if weights.path:
        load_in_order(model, weights.path)
    side = section.image_size or model.pretrained_cfg["input_size"][-1]
    if section.image_size:
        _resize(model, section)
    model.eval().to(device)
    normalised = Normalised(standardised(model.pretrained_cfg["mean"], model.pretrained_cfg["std"]), device)
    forward, grid = _of_timm(model, lambda states: model.forward_head(states, pre_logits=True), section)
    return _Tower(lambda picture: square(picture, side), normalised, forward, grid)


def _resize(model: Any, section: Patch) -> None:
    assert section.image_size is not None
    try:
        if any(section.image_size % side for side in model.patch_embed.patch_size):
            raise ValueError(f"its patches are of {model.patch_embed.patch_size}")
        model.set_input_size(img_size=(section.image_size, section.image_size))
    except (AttributeError, AssertionError, RuntimeError, ValueError) as error:
        raise PairmillError(
            f"{section.model} cannot take pictures of {section.image_size} pixels: {error}",
            "correct image_size, or leave it out",
        ) from None


def _of_timm(
    model: Any, pool: Callable[[torch.Tensor], torch.Tensor], section: Patch
) -> tuple[Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], Callable[[Sequence[int]], tuple[int, int]]]:
    """A timm transformer's tokens and what `pool` makes of them, and its grid of patches."""
    windows = getattr(model, "output_fmt", "") == "NHWC"
    cut = getattr(getattr(model, "patch_embed", None), "dynamic_feat_size", None)
    if cut is None or not (windows or hasattr(model, "num_prefix_tokens")):
        raise _no_vit(section)
    first = 0 if windows else model.num_prefix_tokens

    def forward(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = model.forward_features(batch)
        return states[:, first:], pool(states)

    return forward, cut


def _no_vit(section: Patch) -> PairmillError:
    return PairmillError(
        f"{section.library}'s {section.model} is no vision transformer", 'name one, or take kind = "grid"'
    )


_TOWERS: dict[str, Callable[[Patch, Weights, torch.device], _Tower]] = {"open_clip": _open_clip, "timm": _timm}
