"""Training curves: small panels, one for each objective's loss, one for the learning rate, one for the retrieval."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pyarrow.parquet as pq

from pipeline.report import charts
from pipeline.report.charts import Chart
from pipeline.report.wording import quantity, shown
from pipeline.store.table import Table

SMOOTHED_PART = 0.04
"""The part of all steps that one point of the curve is the mean of."""
POINTS = 160
"""Of a line: more are not seen in a panel."""
PANELS = 12
RUNS = 16
"""How many runs are drawn; what the others came to stands in their lines."""
RATE = "lr"
RECALL = "validation/t2i_r10", "validation/i2t_r10"

Series = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Panel:
    """What is drawn under a name; of a loss also its ends, and what the validation split said last."""

    name: str
    chart: Chart
    first: float | None = None
    last: float | None = None
    validation: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Run:
    """One training: what its manifest says, and its panels (none where it left no metrics)."""

    info: dict[str, Any]
    seconds: float
    panels: list[Panel]


def of_run(table: Table, draw: bool = True) -> Run:
    manifest = table.manifest
    series = _series(table) if draw else {}
    names = sorted(name for name in series if name.startswith("loss/")) or [name for name in series if name == "loss"]
    panels = [_loss(table.folder.name, name, series) for name in names[:PANELS]]
    if RATE in series:
        panels.append(_rate(table.folder.name, series[RATE]))
    if any(name in series for name in RECALL):
        panels.append(_recall(table.folder.name, {name: series[name] for name in RECALL if name in series}))
    return Run(manifest.info, manifest.seconds, panels)


def _series(table: Table) -> dict[str, Series]:
    """Name of the scalar -> (steps, values), finite ones only, in the order in which the names first appear."""
    path = table.folder / "metrics.parquet"
    if not path.exists():
        return {}
    rows = pq.read_table(path, columns=["step", "name", "value"])
    steps, values = (rows[column].to_numpy() for column in ("step", "value"))
    names = np.array(rows["name"].to_pylist(), dtype=object)
    finite = np.isfinite(values)
    found = {name: (names == name) & finite for name in dict.fromkeys(names)}
    return {name: (steps[chosen], values[chosen]) for name, chosen in found.items() if chosen.any()}


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours: the window is centred, and narrower at the ends."""
    reach = max(1, round(len(values) * SMOOTHED_PART / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _loss(run: str, name: str, series: Mapping[str, Series]) -> Panel:
    steps, values = series[name]
    validation = series.get(f"validation/{name}")
    accuracy = series.get(f"validation/{name.replace('loss', 'accuracy')}")
    curve = smoothed(values)
    seen = np.concatenate([np.percentile(values, [1, 99]), curve, validation[1] if validation else []])
    low, high = float(np.min(seen)), float(np.max(seen))
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0  # a loss that never moved still has a height
    objective = name.removeprefix("loss/")
    layers = [
        _line(steps, values, charts.KEPT, 0.6, 0.35),
        _line(steps, curve, charts.KEPT, 1.8),
    ]
    said = f"{quantity(float(curve[0]))} at the first step, {quantity(float(curve[-1]))} at the last"
    if validation:
        layers.append(_dots(*validation, charts.INK, "validation"))
        said += f"; validation {quantity(float(validation[1][-1]))}"
    chart = _panel(layers, [low - margin, high + margin], f"{shown(run, 40)}: loss of {shown(objective, 40)}", said)
    last = {"validation": validation, "accuracy": accuracy}
    ends = {key: float(found[1][-1]) for key, found in last.items() if found}
    return Panel(objective, chart, float(curve[0]), float(curve[-1]), **ends)


def _rate(run: str, series: Series) -> Panel:
    steps, values = series
    most = float(values.max())
    said = f"{most:.2g} at most, {float(values[-1]):.2g} at the last step"
    chart = _panel(
        [_line(steps, values, charts.KEPT, 1.8)], [0, most or 1.0], f"{shown(run, 40)}: learning rate", said, "~e"
    )
    return Panel("learning rate", chart)


def _recall(run: str, series: Mapping[str, Series]) -> Panel:
    colours = dict(zip(RECALL, (charts.KEPT, charts.DROPPED), strict=True))
    names = dict(zip(RECALL, ("text to image", "image to text"), strict=True))
    layers = []
    for name, (steps, values) in series.items():
        layers += [_line(steps, values, colours[name], 1.8), _dots(steps, values, colours[name], names[name])]
    said = ", ".join(f"{names[name]} {values[-1]:.1%}" for name, (_, values) in series.items())
    most = max(float(values.max()) for _, values in series.values())
    chart = _panel(layers, [0, most * 1.06 or 1.0], f"{shown(run, 40)}: R@10 of the validation split", said, "%")
    return Panel("R@10, validation", chart)


def _line(steps: np.ndarray, values: np.ndarray, colour: str, width: float, opacity: float = 1.0) -> alt.Chart:
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))
    points = [{"step": int(steps[at]), "value": round(float(values[at]), 6)} for at in chosen]
    line = alt.Chart(charts.rows(points), width=charts.WIDTH, height=charts.HEIGHT)
    return line.mark_line(clip=True, color=colour, strokeWidth=width, opacity=opacity, strokeCap="round", aria=False)


def _dots(steps: np.ndarray, values: np.ndarray, colour: str, name: str) -> alt.Chart:
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))
    points = [
        {"step": int(steps[at]), "value": float(values[at])}
        | {charts.DESCRIPTION: f"step {int(steps[at]):,}: {name} {quantity(float(values[at]))}"}
        for at in chosen
    ]
    dots = alt.Chart(charts.rows(points)).mark_circle(color=colour, size=26, opacity=1, clip=True)
    return dots.encode(description=charts.described())


def _panel(layers: list[alt.Chart], ends: list[float], title: str, said: str, numbers: str = "~r") -> Chart:
    x = alt.X(
        "step:Q",
        title=None,
        scale=alt.Scale(nice=False),
        axis=alt.Axis(tickCount=4, format="~s", labelExpr=charts.PLAIN_ZERO),
    )
    y = alt.Y(
        "value:Q", title=None, scale=alt.Scale(domain=ends, nice=False), axis=alt.Axis(tickCount=4, format=numbers)
    )
    return charts.drawn(alt.layer(*(layer.encode(x, y) for layer in layers)), title, said)
