"""The funnel as an icicle: all pairs, the stages they fell out in, the rules; beside them what is kept, by split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from pipeline.report import charts
from pipeline.report.charts import Chart
from pipeline.report.funnel import Step
from pipeline.report.wording import shown

LEVELS = ("all pairs", "stage", "rule or split")
SIZES = {"wide": (1088, 420), "narrow": (350, 560)}
"""Of the two drawings, in pixels: a page shows the one that fits."""
SHARES = (0.0, 0.17, 0.44, 1.0)
"""Where the levels end, as parts of the width."""
LETTERS = 6.2
"""Pixels of a letter, about: what is longer than its box is cut."""
LINE_HEIGHT = charts.TEXT + 3


@dataclass(frozen=True)
class Part:
    """A box of the icicle: `name` has `pairs`, which are those of its parts together."""

    name: str
    pairs: int
    kept: bool
    parts: list["Part"] = field(default_factory=list)


def tree(steps: Sequence[Step], kept: int, splits: Mapping[str, int]) -> Part:
    """All pairs, divided by what became of them; what was kept comes first. Nothing that is empty has a box."""
    stages: dict[str, list[Part]] = {}
    for step in steps:
        if step.dropped:
            stages.setdefault(step.stage, []).append(Part(step.rule, step.dropped, False))
    fallen = [Part(stage, sum(part.pairs for part in parts), False, parts) for stage, parts in stages.items()]
    remaining = [Part(split, pairs, True) for split, pairs in splits.items() if pairs]
    whole = [Part("kept", kept, True, remaining)] if kept else []
    return Part("all", sum(part.pairs for part in (*whole, *fallen)), bool(kept), whole + fallen)


def boxes(root: Part, height: float) -> list[dict[str, Any]]:
    """Level, top and bottom (in pixels) of every part: its share of all pairs, inside of what it is part of."""
    found: list[dict[str, Any]] = []

    def place(part: Part, level: int, top: int) -> None:
        scale = height / max(root.pairs, 1)
        share = 100 * part.pairs / max(root.pairs, 1)
        said = f"{shown(part.name, 60)}: {part.pairs:,} pairs, {share:.1f} %"
        box = {"level": level, "top": top * scale, "bottom": (top + part.pairs) * scale, "kept": part.kept or not level}
        found.append(box | {"name": shown(part.name, 60), "pairs": part.pairs, charts.DESCRIPTION: said})
        for inner in part.parts:
            place(inner, level + 1, top)
            top += inner.pairs

    place(root, 0, 0)
    return found


def drawings(steps: Sequence[Step], kept: int, splits: Mapping[str, int]) -> dict[str, Chart]:
    """The icicle for a "wide" page and for a "narrow" one; nothing where no pair came in."""
    root = tree(steps, kept, splits)
    return {name: _drawing(root, *size) for name, size in SIZES.items()} if root.pairs else {}


def _drawing(root: Part, width: int, height: int) -> Chart:
    placed = boxes(root, height)
    for box in placed:
        box["left"], box["right"] = (width * share for share in SHARES[box["level"] : box["level"] + 2])
        box["label"] = _label(box["name"], f"{box['pairs']:,}", box["right"] - box["left"], box["bottom"] - box["top"])
        box["x"], box["y"] = box["left"] + 7, (box["top"] + box["bottom"]) / 2
        box["colour"] = "all" if box["level"] == 0 else "kept" if box["kept"] else "dropped"
    colours = {"all": charts.LINE, "kept": charts.KEPT_SOFT, "dropped": charts.DROPPED_SOFT}
    x = alt.X("left:Q", scale=alt.Scale(domain=[0, width], nice=False), axis=None)
    y = alt.Y("top:Q", scale=alt.Scale(domain=[0, height], nice=False, reverse=True), axis=None)
    colour = alt.Color("colour:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
    areas = (
        alt.Chart(charts.rows(placed), width=width, height=height)
        .mark_rect(stroke=charts.PAPER, strokeWidth=1)
        .encode(x, alt.X2("right"), y, alt.Y2("bottom"), color=colour, description=charts.described())
    )
    readable = [box for box in placed if box["label"]]
    labels = (
        alt.Chart(charts.rows(readable))
        .mark_text(
            align="left",
            baseline="middle",
            lineHeight=LINE_HEIGHT,
            fontSize=charts.TEXT + 1,
            color=charts.INK,
            aria=False,
        )
        .encode(alt.X("x:Q", axis=None), alt.Y("y:Q", axis=None), text="label:N")
    )
    said = "; ".join(box[charts.DESCRIPTION] for box in placed)
    return charts.drawn(alt.layer(areas, labels), "What became of the pairs", said)


def _label(name: str, number: str, width: float, height: float) -> list[str]:
    """The lines that fit a box: name and number side by side or one below the other; a long name is cut."""
    room = int((width - 12) / LETTERS)
    if height < LINE_HEIGHT:
        return []
    if len(name) + len(number) + 2 <= room:
        return [f"{name}  {number}"]
    if height < 2 * LINE_HEIGHT:
        left = room - len(number) - 3
        return [f"{name[:left]}…  {number}"] if left > 2 else []
    return [name if len(name) <= room else name[: max(room - 1, 1)] + "…", *([number] if len(number) <= room else [])]
