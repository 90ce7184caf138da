"""AdamW as the recipes publish it: groups by their factor to the rate and by weight decay; warm-up and decay."""

import math

import torch
from torch import nn

from pipeline.model_recipe import ModelRecipe, Optimizer
from trainers.network.model import VisionLanguageModel


def make_optimizer(model: VisionLanguageModel, recipe: ModelRecipe) -> torch.optim.AdamW:
    """AdamW over all that is learnt; its groups hold the factor `scale`, which `set_learning_rate` heeds."""
    scale_of = _scales(model, recipe)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Biases, norms and scalars are the parameters of at most one dimension.
            groups.setdefault((scale_of.get(parameter, 1.0), parameter.ndim > 1), []).append(parameter)
    settings = recipe.optimizer
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0, "scale": scale}
            for (scale, decays), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=all(p.device.type in ("cpu", "cuda") for parameters in groups.values() for p in parameters),
    )


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` of `steps`, counted from 0.

    Up in a line for `warmup` steps, then down to `last` of it, in a line or along half a cosine.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    gone = (step - settings.warmup) / max(steps - settings.warmup, 1)
    left = 1 - gone if settings.decay == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return settings.learning_rate * (settings.last + (1 - settings.last) * left)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def _scales(model: VisionLanguageModel, recipe: ModelRecipe) -> dict[nn.Parameter, float]:
    """The factors of the blocks', the heads' and the decoder's parameters."""
    rows = [row for row in recipe.encoder.blocks for _ in range(row.repeat)]
    scaled: list[tuple[nn.Module | None, float]] = [(model.objectives, recipe.optimizer.heads)]
    scaled += [(block, row.learning_rate_scale) for block, row in zip(model.encoder.blocks, rows, strict=True)]
    if recipe.decoder:
        scaled.append((model.decoder, recipe.decoder.learning_rate_scale))
    return {parameter: scale for module, scale in scaled if module for parameter in module.parameters()}
