"""A batch's losses by the recipe's mix, as one module: data parallelism needs a single forward for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe
from trainers.data.batch import Batch
from trainers.loop.mixing import applicable, outcomes
from trainers.loop.randomness import seed_of, torch_generator
from trainers.network.model import VisionLanguageModel


@dataclass(frozen=True)
class Draws:
    """All that is random in one batch: functions of the seed, of what for, of the batch's number and of the rank."""

    seed: int
    purpose: str
    """What for: "train" or "validation"."""
    number: int
    rank: int = 0

    def seed_of(self, name: str) -> int:
        return seed_of(self.seed, self.purpose, name, self.number, self.rank)

    def generator(self, name: str) -> torch.Generator:
        """On the CPU, so that a GPU masks the same positions."""
        return torch.Generator().manual_seed(self.seed_of(name))


class MixedLosses(nn.Module):
    """The objectives' losses on a batch, and how they add up."""

    def __init__(self, model: VisionLanguageModel, recipe: ModelRecipe) -> None:
        super().__init__()
        self.model = model
        self.seed, self.mixing = recipe.seed, recipe.mixing
        self.weights = {name: settings.weight for name, settings in recipe.objectives.chosen.items()}
        _check_fed(model, recipe)

    def forward(self, batch: Batch, names: Sequence[str], draws: Draws) -> dict[str, Tensor]:
        """The named objectives on the batch: "loss/itm", and its scalars as "accuracy/itm"; all of them scalars.

        "loss" is what a step minimises: the sum by weight, or the only one's where one is drawn, by weight as well.
        """
        found = outcomes(self.model, batch, names, draws.generator, self.mixing == "joint")
        values = {f"loss/{name}": outcome.loss for name, outcome in found.items()}
        for name, outcome in found.items():
            values |= {f"{scalar}/{name}": value.detach() for scalar, value in outcome.scalars.items()}
        drawn = self.mixing == "draw" and len(found) == 1
        losses = [(1.0 if drawn else self.weights[name]) * outcome.loss for name, outcome in found.items()]
        return {"loss": torch.stack(losses).sum(), **values}

    def names(self, batch: Batch) -> list[str]:
        """The objectives for which the batch has all that they need. Raises PairmillError where there is none."""
        names = applicable(self.model, batch, list(self.weights))
        if not names:
            all_of_them, parts = ", ".join(self.weights), ", ".join(sorted(batch.parts))
            raise PairmillError(
                f"none of the objectives {all_of_them} applies to batches of {parts}",
                "name one that does, or leave that source out",
            )
        return names

    def drawn(self, batch: Batch, step: int) -> list[str]:
        """Those of step `step`: all that apply, or one of them by weight. The same on all ranks."""
        names = self.names(batch)
        if self.mixing != "draw":
            return names
        weights = torch.tensor([self.weights[name] for name in names])
        return [names[int(torch.multinomial(weights, 1, generator=torch_generator(self.seed, "draw", step)))]]


def _check_fed(model: VisionLanguageModel, recipe: ModelRecipe) -> None:
    """Raise PairmillError where a source feeds no objective, or an objective has no source: before the first step."""
    parts = [recipe.parts(source) for source in recipe.sources]
    for source, there in zip(recipe.sources, parts, strict=True):
        if not any(model.objective(name).needs <= there for name in recipe.objectives.chosen):
            raise PairmillError(
                f"none of the objectives {', '.join(recipe.objectives.chosen)} applies to the source of {source.kind}, "
                f"whose batches have {', '.join(sorted(there))}",
                "name one that does in `objectives`, or leave that source out of `sources`",
            )
    for name in recipe.objectives.chosen:
        if not any(model.objective(name).needs <= there for there in parts):
            lacking = ", ".join(sorted(model.objective(name).needs))
            raise PairmillError(
                f"the objective {name} needs {lacking}, and none of the `sources` has all of it",
                f"add such a source, or switch it off: objectives.{name} = false",
            )
