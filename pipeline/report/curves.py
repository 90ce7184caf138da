"""Loss curves: small panels of one objective each, as SVG in the page's own colours, light or dark."""

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from pipeline.store.atomic import digest
from pipeline.store.table import Table

# matplotlib knows no CSS variables: it draws in stand-in colours, which are replaced in its output.
COLOURS = {"#010101": "var(--muted)", "#020202": "var(--line)", "#030303": "var(--kept)", "#040404": "var(--ink)"}
MUTED, LINE, TRAIN, VALIDATION = COLOURS
WIDTH, HEIGHT = 3.0, 1.8
SMOOTHED_PART = 0.04
"""The part of all steps that one point of the curve is the mean of."""

Series = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Panel:
    """One objective's loss: its curve, the ends of it, and what the validation split said last."""

    objective: str
    svg: Markup
    first: float
    last: float
    validation: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Run:
    """One training: what its manifest says, and its panels (none where it left no metrics)."""

    info: dict[str, Any]
    seconds: float
    panels: list[Panel]


def of_run(table: Table) -> Run:
    manifest = table.manifest
    series = _series(table)
    names = sorted(name for name in series if name.startswith("loss/")) or [name for name in series if name == "loss"]
    return Run(manifest.info, manifest.seconds, [_panel(table.folder.name, name, series) for name in names])


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


def _panel(run: str, name: str, series: dict[str, Series]) -> Panel:
    steps, values = series[name]
    validation = series.get(f"validation/{name}")
    accuracy = series.get(f"validation/{name.replace('loss', 'accuracy')}")
    curve = smoothed(values)
    return Panel(
        objective=name.removeprefix("loss/"),
        svg=_svg(digest(run, name), steps, values, curve, validation),
        first=float(curve[0]),
        last=float(curve[-1]),
        validation=float(validation[1][-1]) if validation else None,
        accuracy=float(accuracy[1][-1]) if accuracy else None,
    )


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours: the window is centred, and narrower at the ends."""
    reach = max(1, round(len(values) * SMOOTHED_PART / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _svg(salt: str, steps: np.ndarray, values: np.ndarray, curve: np.ndarray, validation: Series | None) -> Markup:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9, "axes.linewidth": 0.6}
    with rc_context(style):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((0.13, 0.16, 0.85, 0.80))
        axes.plot(steps, values, color=TRAIN, linewidth=0.6, alpha=0.3)
        axes.plot(steps, curve, color=TRAIN, linewidth=1.8, solid_capstyle="round")
        seen = [np.percentile(values, [1, 99]), curve]
        if validation:
            axes.plot(*validation, "o", color=VALIDATION, markersize=3.6)
            seen.append(validation[1])
        low, high = float(np.min(np.concatenate(seen))), float(np.max(np.concatenate(seen)))
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0  # a loss that never moved still has a height
        axes.set_ylim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelcolor=MUTED, pad=5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_inlined(out.getvalue(), salt[:8]))


def _inlined(svg: str, prefix: str) -> str:
    """The <svg> element alone: no fixed size, no metadata, no style sheet of its own, ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r'xlink:href="#', 'href="#', svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    for stand_in, variable in COLOURS.items():
        svg = svg.replace(stand_in, variable)
    return svg
