"""How fast a training runs, how much of that it waits for its loader, and how much of what it computes is padding."""

import time
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

from trainers.data.batch import Batch
from trainers.loop.metrics import Metrics

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """Passes items on, and adds up the `seconds` for which they were waited."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.items = items
        self.seconds = 0.0

    def __iter__(self) -> "Waiting[Item]":
        return self

    def __next__(self) -> Item:
        asked = time.monotonic()
        try:
            return next(self.items)
        finally:
            self.seconds += time.monotonic() - asked

    def close(self) -> None:
        """End what makes the items, where it can be ended early."""
        if isinstance(self.items, Generator):
            self.items.close()


class Speed:
    """Seconds of steps and of waiting, this process's only: a resumed training's curve begins where it carried on.

    `curve` holds `samples/s`; `tokens/s`, text and vision positions that are not padding; `loader_wait`, the share of a
    step's time that went by before its batches were there; and `padding`, the share of the positions. Of `ranks`
    processes, which take like parts of each batch, this one speaks for all.
    """

    def __init__(self, ranks: int = 1) -> None:
        self.curve = Metrics()
        self.ranks = ranks
        self.steps = self.samples = self.tokens = self.positions = 0
        self._samples = self._tokens = self._positions = 0
        self.waited = self.worked = 0.0

    def see(self, batch: Batch) -> None:
        """Count a batch towards the step under way."""
        inputs = [part for part in (batch.text, batch.vision) if part is not None]
        self._samples += self.ranks * len(batch)
        self._tokens += self.ranks * sum(int(part.present.sum()) for part in inputs)
        self._positions += self.ranks * sum(part.present.numel() for part in inputs)

    def add(self, step: int, waited: float, worked: float) -> dict[str, float]:
        """End the step; returns its row of the curve."""
        samples, tokens, positions = self._samples, self._tokens, self._positions
        self._samples = self._tokens = self._positions = 0
        self.steps += 1
        self.samples += samples
        self.tokens += tokens
        self.positions += positions
        self.waited += waited
        self.worked += worked
        seconds = waited + worked
        row = {
            "samples/s": samples / seconds,
            "tokens/s": tokens / seconds,
            "loader_wait": waited / seconds,
            "padding": 1 - tokens / max(positions, 1),
        }
        self.curve.add(step, row)
        return row

    @property
    def summary(self) -> dict[str, float]:
        """Over all steps so far; validation and checkpoints do not count."""
        seconds = max(self.waited + self.worked, 1e-9)
        return {
            "seconds_per_step": round(seconds / max(self.steps, 1), 4),
            "samples_per_second": round(self.samples / seconds, 1),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "loader_wait": round(self.waited / seconds, 4),
            "padding": round(1 - self.tokens / max(self.positions, 1), 4),
        }

    @property
    def shown(self) -> dict[str, str]:
        """For a progress bar."""
        summary = self.summary
        return {
            "samples": f"{summary['samples_per_second']:,.0f}/s",
            "tokens": f"{summary['tokens_per_second']:,.0f}/s",
            "wait": f"{summary['loader_wait']:.1%}",
            "padding": f"{summary['padding']:.1%}",
        }
