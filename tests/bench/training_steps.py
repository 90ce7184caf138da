"""Our training step beside the same model's of `transformers`: BERT-base, 36 regions of 2048 numbers, 20 tokens.

`python -m tests.bench.training_steps [--quick]`. Each side is a process of its own, with all cores; they do their steps
in turns, so that the machine's moods fall on both, and the median step counts.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.bench.table import Row, write

PAIRS = 32
WARM = 2
SYSTEMS: Mapping[str, tuple[str, str]] = {
    "visualbert": ("single-stream step: masked words, matching", "VisualBertForPreTraining"),
    "lxmert": ("dual-stream step: masked words, regions' classes and features, matching", "LxmertForPreTraining"),
}
TARGET = ">= 1.5"
PARAMETERS_ALIKE = 0.02


@dataclass
class Side:
    """A process of `training_sides` that waits for its turn."""

    name: str
    pairs: int = PAIRS
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0
    """Bytes of memory."""

    def __enter__(self) -> "Side":
        command = [sys.executable, "-m", "tests.bench.training_sides", self.name, "--pairs", str(self.pairs)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.parameters = int(self._line())
        return self

    def step(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seconds, loss, peak = self._line().split()
        self.seconds.append(float(seconds))
        self.losses.append(float(loss))
        self.peak = int(peak)

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds[WARM:])

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return line


def in_turns(sides: list[Side], steps: int) -> None:
    for _ in range(WARM + steps):
        for side in sides:
            side.step()
            print(f"  {side.name}: {side.seconds[-1]:.3f} s, loss {side.losses[-1]:.3f}", file=sys.stderr, flush=True)


def compared(name: str, steps: int, pairs: int) -> list[Row]:
    """A system's step: its time and its memory, ours and theirs."""
    work, peer = SYSTEMS[name]
    with Side(f"our {name}", pairs) as ours, Side(name, pairs) as theirs:
        _agree(ours, theirs)
        in_turns([ours, theirs], steps)
    return [
        Row.of(
            f"{work}; {pairs} pairs, {ours.parameters / 1e6:.0f} M parameters: {ours.median:.2f} s",
            f"transformers' {peer}, {theirs.parameters / 1e6:.0f} M: {theirs.median:.2f} s",
            theirs.median / ours.median,
            "x faster",
            TARGET,
        ),
        Row.of(
            f"the same: {ours.peak / 1e9:.2f} GB",
            f"the same: {theirs.peak / 1e9:.2f} GB",
            ours.peak / theirs.peak,
            "x its peak memory",
            "<= 1",
        ),
    ]


def checkpointed(steps: int, pairs: int) -> Row:
    """What gradient checkpointing saves, and what it costs."""
    with Side("our visualbert", pairs) as plain, Side("our visualbert, checkpointing", pairs) as saving:
        in_turns([plain, saving], steps)
    _check_losses(plain, saving)
    return Row.of(
        f"single-stream step of {pairs} pairs with gradient checkpointing: {saving.peak / 1e9:.2f} GB, "
        f"{saving.median / plain.median:.2f} x the time",
        f"without: {plain.peak / 1e9:.2f} GB",
        saving.peak / plain.peak,
        "x its peak memory",
        "<= 0.75",
    )


def _check_losses(side: Side, other: Side) -> None:
    """Raise AssertionError where two sides of the same seed did different work."""
    for loss, same in zip(side.losses, other.losses, strict=True):
        if abs(loss - same) > 1e-3 * abs(loss):
            raise AssertionError(f"{side.name} and {other.name} differ: losses {side.losses} and {other.losses}")


def _agree(ours: Side, theirs: Side) -> None:
    """Raise AssertionError where the models are not of one size."""
    if abs(ours.parameters / theirs.parameters - 1) > PARAMETERS_ALIKE:
        raise AssertionError(f"{ours.name} has {ours.parameters:,} parameters, {theirs.name} {theirs.parameters:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one step of two pairs")
    options = parser.parse_args()
    steps, pairs = (1, 2) if options.quick else (12, PAIRS)
    rows = [row for name in SYSTEMS for row in compared(name, steps, pairs)]
    write("training_steps", [*rows, checkpointed(1 if options.quick else 3, 2 * pairs)])


if __name__ == "__main__":
    main()
