"""Histograms of what was measured, counted by SQL. Where there is a threshold, it is the edge between two bars.

A bar lies on one side of its threshold altogether, so its colour says what becomes of the pairs in it. The axis ends
where all but 0.5 % of the values at either end lie; what is beyond is counted in the last bar, and said.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import altair as alt
import duckdb

from pipeline.report import charts
from pipeline.report.charts import Chart
from pipeline.report.wording import plural, quantity

BINS = 30
MOST_SINGLE = 48
"""Whole numbers get a bar each up to this many."""
TAIL = 0.005
LARGEST = 1e100
"""What is larger in size counts as no number: axes are reckoned in floating point."""
SMALLEST = 1 / LARGEST
"""No logarithmic axis begins below it."""
TOWERS = 10
"""A bar is cut where it is this many times as high as the next."""
LOG_FROM = 200.0
"""The axis is logarithmic where the greatest value is this many times the least."""


@dataclass(frozen=True)
class Histogram:
    """`counts[group][i]` values lie between `edges[i]` and `edges[i + 1]`; the end bars hold what lies beyond as well.

    `left_closed`: an edge belongs to the bar on its right. `beyond`: how many values lie left and right of the axis.
    `missing`: rows without a finite value. `reach`: the least and the greatest value, beyond the axis as well.
    """

    edges: list[float]
    counts: list[list[int]]
    left_closed: bool
    log: bool
    whole: bool
    beyond: tuple[int, int]
    missing: int
    threshold: float | None = None
    reach: tuple[float, float] = (-math.inf, math.inf)

    @property
    def total(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def heights(self) -> list[int]:
        """What stands in each bar, all groups together."""
        return [sum(own) for own in zip(*self.counts, strict=True)]

    @property
    def top(self) -> int:
        """Where the axis of counts ends: a bar that towers over all others is cut, so that those are seen."""
        *_, second, tallest = [0, *sorted(self.heights)]
        return 2 * second if tallest > TOWERS * second > 0 else max(tallest, 1)

    @property
    def single(self) -> bool:
        """Whether each whole number has a bar of its own."""
        return self.whole and not self.log and self.edges[1] - self.edges[0] == 1


def histogram(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    value: str,
    groups: Sequence[str] = ("true",),
    threshold: float | None = None,
    left_closed: bool = True,
) -> Histogram | None:
    """Bars of the SQL expression `value` over a relation; None where it is nowhere a number.

    `groups`: SQL predicates; a row counts in the first that is true, and nowhere if none is. With a threshold, what
    equals it belongs to the bar on its right if `left_closed`, and to that on its left if not.
    """
    cases = " ".join(f"WHEN {group} THEN {number}" for number, group in enumerate(groups))
    # Aggregates pass NULLs by: a value that is no number is a missing one.
    measured = f"SELECT ({value})::DOUBLE AS v, CASE {cases} END AS g FROM {relation}"
    source = f"SELECT CASE WHEN abs(v) < {LARGEST} THEN v END AS v, g FROM ({measured}) WHERE g IS NOT NULL"
    (ends,) = connection.execute(
        f"SELECT quantile_disc(v, [{TAIL}, {1 - TAIL}]), bool_and(v = trunc(v)), min(v) FILTER (v >= {SMALLEST}), "
        f"count(*) - count(v), min(v), max(v) FROM ({source})"
    ).fetchall()
    if ends[0] is None:
        return None
    (low, high), whole, least, missing, *reach = ends
    if threshold is not None and not abs(threshold) < LARGEST:
        threshold = None
    given = [threshold] if threshold is not None else []
    low, high = min([low, *given]), max([high, *given])
    log = low >= 0 and bool(least) and high / max(low, least) >= LOG_FROM and min(given, default=1) >= SMALLEST
    if log:
        low = min([max(low, least), *given])
    edges = _edges(low, high, threshold, log, whole, left_closed)
    counted = _counted(connection, source, edges, left_closed, len(groups))
    return replace(
        Histogram(edges, [], left_closed, log, whole, (0, 0), missing, threshold, (reach[0], reach[1])),
        counts=[[own[0] + own[1], *own[2:-2], own[-2] + own[-1]] if len(own) > 3 else [sum(own)] for own in counted],
        beyond=(sum(own[0] for own in counted), sum(own[-1] for own in counted)),
    )


def _edges(low: float, high: float, threshold: float | None, log: bool, whole: bool, left_closed: bool) -> list[float]:
    """Edges of bars of one width (on a logarithmic axis: one ratio) that cover low to high.

    One of them is the threshold, with a bar on either side: what lies beyond the axis must not change sides.
    """
    anchor = low if threshold is None else threshold
    if log:
        a, b, at = math.log(low), math.log(high), math.log(anchor)
        step = max((b - a) / BINS, 1e-9)
    else:
        a, b, at = low, high, anchor
        step = max((b - a) / BINS, 1e-9 * max(abs(a), abs(b))) or 1.0 / BINS
        if whole and abs(a) + abs(b) < 1e12:
            step = 1.0 if b - a < MOST_SINGLE else float(math.ceil(step))
    below, above = (at - a) / step, (b - at) / step
    if left_closed:
        first, last = -math.ceil(below), math.floor(above) + 1
    else:
        first, last = -math.floor(below) - 1, math.ceil(above)
    if threshold is not None:
        first, last = min(first, -1), max(last, 1)

    def edge(k: int) -> float:
        return anchor if k == 0 else math.exp(at + k * step) if log else at + k * step

    # Rounding must not leave the ends of the range outside.
    while edge(first) > low or (edge(first) == low and not left_closed):
        first -= 1
    while edge(last) < high or (edge(last) == high and left_closed):
        last += 1
    return [edge(k) for k in range(first, last + 1)]


def _counted(
    connection: duckdb.DuckDBPyConnection, source: str, edges: list[float], left_closed: bool, groups: int
) -> list[list[int]]:
    """Of each group: how many values lie before the first edge, between each two, and behind the last one."""
    # DuckDB's bars hold their right edge. Mirrored at zero, which is exact, they hold the left one.
    sign, bounds = ("-", [-edge for edge in reversed(edges)]) if left_closed else ("", edges)
    found = {
        group: bars or {}
        for group, bars in connection.execute(
            f"SELECT g, histogram({sign}v, ?::DOUBLE[]) FROM ({source}) GROUP BY g", [bounds]
        ).fetchall()
    }
    counted = []
    for group in range(groups):
        bars = found.get(group, {})
        own = [bars.get(bound, 0) for bound in bounds] + [bars.get(math.inf, 0)]
        counted.append(own[::-1] if left_closed else own)
    return counted


def chart(
    histogram: Histogram,
    title: str,
    colours: Sequence[str],
    names: Sequence[str],
    unit: str = "pairs",
    measured: str | None = None,
) -> Chart:
    """Bars that stand on one another, a group each; `names` is what the groups are called under the pointer.

    `unit`: what is counted. `measured`: what stands under the axis of values, where no caption says it.
    """
    # A bar of one whole number stands over that number, not beside it.
    shift = (-0.5 if histogram.left_closed else 0.5) if histogram.single else 0.0
    edges = [edge + shift for edge in histogram.edges]
    bars = []
    for at in range(len(edges) - 1):
        base = 0
        for group, own in enumerate(histogram.counts):
            if own[at]:
                said = f"{_between(histogram, at)}: {plural(own[at], unit)}{names[group] and ', '}{names[group]}"
                bar = {"left": edges[at], "right": edges[at + 1], "low": base, "high": base + own[at], "group": group}
                bars.append(bar | {charts.DESCRIPTION: said})
            base += own[at]
    scale = alt.Scale(type="log" if histogram.log else "linear", domain=[edges[0], edges[-1]], nice=False)
    x = alt.X("left:Q", scale=scale, title=measured, axis=_axis(edges, histogram))
    counts = alt.Scale(domain=[0, histogram.top], nice=False)
    y = alt.Y(
        "low:Q",
        scale=counts,
        title=unit,
        axis=alt.Axis(tickCount=3, tickMinStep=1, format="~s", labelExpr=charts.PLAIN_ZERO),
    )
    colour = alt.Color("group:N", scale=alt.Scale(domain=list(range(len(colours))), range=list(colours)), legend=None)
    standing = (
        alt.Chart(charts.rows(bars), width=charts.WIDTH, height=charts.HEIGHT)
        .mark_rect(stroke=charts.PAPER, strokeWidth=0.5, clip=True)
        .encode(x, alt.X2("right"), y, alt.Y2("high"), color=colour, description=charts.described())
    )
    if histogram.threshold is None:
        return charts.drawn(standing, title, _in_words(histogram, unit))
    row = {"left": histogram.threshold + shift, charts.DESCRIPTION: f"threshold {quantity(histogram.threshold)}"}
    line = alt.Chart(charts.rows([row])).mark_rule(color=charts.INK, strokeWidth=1.5, strokeDash=[4, 3])
    layers = [standing, line.encode(alt.X("left:Q"), description=charts.described())]
    return charts.drawn(alt.layer(*layers), title, _in_words(histogram, unit))


def _axis(edges: Sequence[float], histogram: Histogram) -> alt.Axis:
    """On a logarithmic axis the powers of ten are named, and where they are few, what lies between as well."""
    form = ",~r" if max(map(abs, edges)) < 10_000 else "~s"
    if histogram.single:
        numbers = range(math.ceil(edges[0]), math.floor(edges[-1]) + 1)
        step = next((step for step in (1, 2, 5) if len(numbers) / step <= 9), 10)
        return alt.Axis(values=[number for number in numbers if number % step == 0], format=form)
    if not histogram.log:
        return alt.Axis(tickCount=5, tickMinStep=1 if histogram.whole else 0, format=form, labelExpr=charts.PLAIN_ZERO)
    powers = range(math.floor(math.log10(edges[0])), math.ceil(math.log10(edges[-1])) + 1)
    ticks = [step * 10.0**power for power in powers for step in ((1,) if len(powers) > 4 else (1, 2, 5))]
    inside = [tick for tick in ticks if edges[0] <= tick <= edges[-1]]
    return alt.Axis(values=inside, labelOverlap=True, format=form)


def _ends(histogram: Histogram, at: int) -> tuple[float, float]:
    """Between what the values of a bar lie: whole numbers between those that its edges enclose."""
    left, right = histogram.edges[at], histogram.edges[at + 1]
    if histogram.whole and histogram.left_closed:
        left, right = math.ceil(left), math.ceil(right) - 1
    elif histogram.whole:
        left, right = math.floor(left) + 1, math.floor(right)
    least, greatest = histogram.reach
    last = len(histogram.edges) - 2
    return least if at == 0 else max(left, least), greatest if at == last else min(right, greatest)


def _between(histogram: Histogram, at: int) -> str:
    left, right = _ends(histogram, at)
    return quantity(left) if left == right else f"{quantity(left)} to {quantity(right)}"


def _in_words(histogram: Histogram, unit: str) -> str:
    """The tallest bar, and where the values lie."""
    totals = histogram.heights
    tallest = max(range(len(totals)), key=totals.__getitem__)
    words = f"{plural(histogram.total, unit)} from {' to '.join(map(quantity, histogram.reach))}"
    words += f", most often {_between(histogram, tallest)} ({totals[tallest]:,})"
    if histogram.threshold is not None:
        at = histogram.edges.index(histogram.threshold)
        left, right = ("below", "at or above") if histogram.left_closed else ("at or below", "above")
        words += f"; {sum(totals[:at]):,} {left} the threshold {quantity(histogram.threshold)}"
        words += f" and {sum(totals[at:]):,} {right}"
    return words


def remarks(histogram: Histogram, unit: str = "pairs") -> list[str]:
    """What a reader must know about the drawing."""
    said = ["logarithmic axis"] if histogram.log else []
    if (tallest := max(histogram.heights)) > histogram.top:
        said.append(f"one bar is cut off: it holds {plural(tallest, unit)}")
    left, right = histogram.beyond
    if left:
        said.append(f"the first bar includes {plural(left, unit)} further left")
    if right:
        said.append(f"the last bar includes {plural(right, unit)} further right")
    if histogram.missing:
        said.append(f"{plural(histogram.missing, unit)} without a value")
    return said
