"""Early stop: a training ends when its validation has not got better for a while."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PairmillError
from pipeline.model_recipe import EarlyStop


@dataclass
class EarlyStopping:
    """The best validation so far, and how many have come since."""

    settings: EarlyStop
    best: float | None = None
    step: int | None = None
    """After which the best was taken."""
    waited: int = 0

    @property
    def over(self) -> bool:
        return self.waited >= self.settings.patience

    def judge(self, step: int, validation: Mapping[str, float]) -> bool:
        """Whether the validation after `step` is the best so far. What is not a number never is.

        Raises PairmillError where it has nothing under the metric's name.
        """
        name = f"validation/{self.settings.metric}"
        if name not in validation:
            there = ", ".join(title.removeprefix("validation/") for title in validation) or "nothing"
            raise PairmillError(
                f"early_stop.metric is {self.settings.metric!r}, and the validation has {there}", "name one of these"
            )
        value = validation[name]
        sign = 1 if self.settings.highest else -1
        better = value == value and (self.best is None or sign * value > sign * self.best)
        if better:
            self.best, self.step, self.waited = value, step, 0
        else:
            self.waited += 1
        return better

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "step": self.step, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.best, self.step, self.waited = state["best"], state["step"], state["waited"]
