"""How fast a training runs, and how much of that it waits for its loader."""

from trainers.metrics import Metrics


class Speed:
    """Seconds of steps and of waiting, this process's only: a resumed training's curve begins where it carried on.

    `curve` holds `samples/s` and `loader_wait`, the share of a step's time that went by before its batch was there.
    """

    def __init__(self) -> None:
        self.curve = Metrics()
        self.samples = 0
        self.waited = 0.0
        self.worked = 0.0

    def add(self, step: int, samples: int, waited: float, worked: float) -> None:
        self.samples += samples
        self.waited += waited
        self.worked += worked
        seconds = waited + worked
        self.curve.add(step, {"samples/s": samples / seconds, "loader_wait": waited / seconds})

    @property
    def summary(self) -> dict[str, float]:
        """Over all steps so far; validation and checkpoints do not count."""
        seconds = max(self.waited + self.worked, 1e-9)
        return {
            "samples_per_second": round(self.samples / seconds, 1),
            "loader_wait": round(self.waited / seconds, 4),
        }

    @property
    def shown(self) -> dict[str, str]:
        """For a progress bar."""
        summary = self.summary
        return {"samples": f"{summary['samples_per_second']:.0f}/s", "wait": f"{summary['loader_wait']:.1%}"}
