"""The benchmarks' tables: each writes `bench/<name>.json` and prints the same as Markdown, for the README.

Every figure is a ratio of two measurements made side by side in one run.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is in `unit` (such as "x its time"); `target` says what was aimed at ("<= 2.5")."""

    work: str
    peer: str
    ratio: float
    unit: str
    target: str
    met: bool

    @classmethod
    def of(cls, work: str, peer: str, ratio: float, unit: str, target: str) -> "Row":
        """A row whose `met` follows from the target: "<= NUMBER" or ">= NUMBER"."""
        side, number = target.split()
        met = ratio <= float(number) if side == "<=" else ratio >= float(number)
        return cls(work, peer, round(ratio, 3), unit, target, met)


def markdown(rows: Iterable[Row]) -> str:
    lines = ["| work | compared with | measured | target | met |", "|---|---|---|---|---|"]
    for row in rows:
        met = "yes" if row.met else "**no**"
        lines.append(f"| {row.work} | {row.peer} | {row.ratio:.3g} {row.unit} | {row.target} | {met} |")
    return "\n".join(lines)


def write(name: str, rows: list[Row], folder: Path = Path("bench")) -> None:
    """Keep the rows as `bench/<name>.json` and print them."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(markdown(rows))
