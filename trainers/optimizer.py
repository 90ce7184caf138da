"""AdamW as the recipes publish it: no decay on biases and LayerNorms; a linear warm-up, then a linear decay."""

import torch
from torch import nn

from pipeline.model_recipe import Optimizer
from trainers.encoder import Block
from trainers.model import VisionLanguageModel


def make_optimizer(model: VisionLanguageModel, settings: Optimizer, scales: list[float]) -> torch.optim.AdamW:
    """AdamW over all parameters; `scales` holds a factor to the learning rate for each of the encoder's blocks."""
    scale_of: dict[int, float] = {}
    for block, scale in zip(model.encoder.blocks, scales, strict=True):
        assert isinstance(block, Block)
        scale_of.update((id(parameter), scale) for parameter in block.parameters())
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        # Biases, norms and scalars are the parameters of at most one dimension.
        groups.setdefault((scale_of.get(id(parameter), 1.0), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0, "scale": scale}
            for (scale, decays), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
    )


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` of `steps`, counted from 0: up in a line for `warmup` steps, then down in a line to 0."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    return settings.learning_rate * (steps - step) / max(steps - settings.warmup, 1)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
