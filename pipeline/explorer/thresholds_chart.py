"""The histogram under a slider: what would pass and what would fall, in two colours, and the threshold's line."""

from typing import Any

from pipeline.explorer.margins import Margin
from pipeline.explorer.thresholds import Histogram
from pipeline.store.views.thresholds import side


def shown(value: float) -> str:
    """A threshold for people."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def chart_of(bars: Histogram) -> dict[str, Any]:
    """ECharts' options of a histogram that `draw` has still to fill. Ragged numbers of pairs get a log scale."""
    pairs = bars.pairs[bars.pairs > 0]
    ragged = len(pairs) and pairs.max() > 100 * sorted(pairs)[len(pairs) // 2]
    axis = {"type": "log", "min": 0.5} if ragged else {"type": "value"}
    hidden = {"show": False, "type": "value", "min": 0}
    grey = {"axisLabel": {"color": "#888"}, "splitLine": {"lineStyle": {"color": "#8884"}}}
    bar = {"type": "bar", "barGap": "-100%", "barCategoryGap": "8%"}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 8, "top": 8, "bottom": 4, "containLabel": True},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": [
            {"type": "category", "data": [shown(float(stop)) for stop in bars.stops], "axisLabel": {"color": "#888"}},
            hidden | {"max": len(bars.stops)},
        ],
        "yAxis": [axis | grey, hidden | {"max": 1}],
        "series": [
            bar | {"name": "would pass", "itemStyle": {"color": "#1a9c7d"}, "data": []},
            bar | {"name": "would fall", "itemStyle": {"color": "#c65b4e"}, "data": []},
            {
                "type": "line",
                "xAxisIndex": 1,
                "yAxisIndex": 1,
                "symbol": "none",
                "lineStyle": {"color": "#888", "width": 2, "type": "dashed"},
                "tooltip": {"show": False},
                "data": [],
            },
        ],
    }


def draw(options: dict[str, Any], bars: Histogram, margin: Margin, cutoff: float) -> None:
    """Colour the bars on both sides of the cutoff, and put its line between them."""
    edge = bars.edge(cutoff)
    up = side(margin.setting.rule) in ("<", "<=")
    low: list[int | None] = [int(pairs) or None for pairs in bars.pairs[:edge]]
    high: list[int | None] = [int(pairs) or None for pairs in bars.pairs[edge:]]
    left, right = [*low, *[None] * len(high)], [*[None] * len(low), *high]
    passing, falling = (right, left) if up else (left, right)
    for series, data in zip(options["series"], (passing, falling, [[edge, 0], [edge, 1]]), strict=True):
        series["data"] = data
