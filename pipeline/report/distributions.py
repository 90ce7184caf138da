"""What the pairs are like: sizes, bytes and formats of the images, lengths and languages of the texts."""

import math
from dataclasses import dataclass

import altair as alt
import duckdb

from pipeline.report import charts, histograms
from pipeline.report.charts import Chart
from pipeline.report.samples import KEPT_KEYS, KEPT_UIDS
from pipeline.report.wording import shown
from pipeline.store.dataset import Dataset
from pipeline.store.sql import parquet

NAMES = ["kept", "dropped"]
COLOURS = [charts.KEPT, charts.DROPPED_SOFT]
CELLS = 24
"""Squares of the map of sizes, each way."""
LANGUAGES = 12
FORMATS = 8


@dataclass(frozen=True)
class Drawing:
    """A chart with what must be known to read it."""

    name: str
    chart: Chart
    remarks: list[str]


def drawings(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> list[Drawing]:
    """Whatever there is data for. Of texts every pair counts, of images every distinct file.

    `samples.look_up_kept` comes first.
    """
    kept = f"uid IN (FROM {KEPT_UIDS})"
    found = [
        _distribution(connection, "pairs", "length(text)", kept, "Characters of the text", "pairs"),
        _languages(dataset, connection, kept),
    ]
    if dataset.images.exists:
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE files AS SELECT min(key) AS key, any_value(format) AS format, "
            "any_value(bytes) AS bytes, any_value(original_width) AS width, any_value(original_height) AS height "
            "FROM images WHERE status = 'ok' GROUP BY sha256"
        )
        kept = f"key IN (FROM {KEPT_KEYS})"
        shape = "greatest(width, height) / least(width, height)"
        found += [
            _sizes(connection),
            _distribution(connection, "files", "least(width, height)", kept, "Pixels of the shorter side", "images"),
            _distribution(connection, "files", shape, kept, "Longer side ÷ shorter side", "images"),
            _distribution(connection, "files", "bytes", kept, "Bytes of the file", "images"),
            _shares(connection, "files", "format", kept, "Format of the file", "images", FORMATS),
        ]
    return [drawing for drawing in found if drawing]


def _distribution(
    connection: duckdb.DuckDBPyConnection, relation: str, value: str, kept: str, name: str, unit: str
) -> Drawing | None:
    bars = histograms.histogram(connection, relation, value, [kept, "true"])
    if bars is None:
        return None
    return Drawing(name, histograms.chart(bars, name, COLOURS, NAMES, unit), histograms.remarks(bars, unit))


def _languages(dataset: Dataset, connection: duckdb.DuckDBPyConnection, kept: str) -> Drawing | None:
    """Only where the recipe's rules had languages measured: nothing is measured for a page."""
    measured = dataset.signals("language", "screen")
    if not measured.exists:
        return None
    # A shard's signals lie in the order of its pairs, and bear no uids.
    shards = [
        f"SELECT uid, language FROM {parquet([dataset.pairs.folder / shard.files[0].name])} "
        f"POSITIONAL JOIN {parquet([measured.folder / own.files[0].name])}"
        for shard, own in zip(dataset.pairs.manifest.shards, measured.manifest.shards, strict=True)
    ]
    return _shares(
        connection, f"({' UNION ALL '.join(shards)})", "language", kept, "Language of the text", "pairs", LANGUAGES
    )


def _shares(
    connection: duckdb.DuckDBPyConnection, relation: str, column: str, kept: str, name: str, unit: str, most: int
) -> Drawing | None:
    """The most frequent values of a column, the others summed up."""
    counted = connection.execute(
        f"SELECT coalesce({column}, '') AS value, count(*) FILTER ({kept}), count(*) FILTER (NOT {kept}) "
        f"FROM {relation} GROUP BY value ORDER BY count(*) DESC, value"
    ).fetchall()
    if not counted:
        return None
    others = counted[most:]
    named = [(shown(value, 24) or "none", *counts) for value, *counts in counted[:most]]
    if others:
        named.append((f"{len(others):,} others", sum(row[1] for row in others), sum(row[2] for row in others)))
    return Drawing(name, bars_by_name(named, name, unit), [])


def bars_by_name(named: list[tuple[str, int, int]], title: str, unit: str) -> Chart:
    """Horizontal bars: (name, kept, dropped), in the order given. Names have passed `shown`."""
    bars = []
    for place, (name, *counts) in enumerate(named):
        start = 0
        for group, count in enumerate(counts):
            said = f"{name}: {count:,} {unit} {NAMES[group]}"
            bars.append({"place": place, "from": start, "to": start + count, "group": group, charts.DESCRIPTION: said})
            start += count
    names = [{"place": place, "name": name, "total": f"{sum(counts):,}"} for place, (name, *counts) in enumerate(named)]
    height = 22 * len(named)
    most = max(sum(counts) for _, *counts in named)
    y = alt.Y("place:O", axis=None, scale=alt.Scale(paddingInner=0.3))
    room = [charts.NAMES, charts.WIDTH - 8 * len(f"{most:,}")]  # behind the bars stand the numbers
    x = alt.X("from:Q", axis=None, scale=alt.Scale(domain=[0, most or 1], range=room, nice=False))
    colour = alt.Color("group:N", scale=alt.Scale(domain=[0, 1], range=COLOURS), legend=None)
    drawn_bars = (
        alt.Chart(charts.rows(bars), width=charts.WIDTH, height=height)
        .mark_bar()
        .encode(x, alt.X2("to"), y, color=colour, description=charts.described())
    )
    left = alt.Chart(charts.rows(names)).mark_text(align="right", aria=False, limit=charts.NAMES - 8)
    numbers = alt.Chart(charts.rows([row | {"at": sum(c)} for row, (_, *c) in zip(names, named, strict=True)]))
    totals = numbers.mark_text(align="left", dx=4, aria=False, color=charts.MUTED).encode(
        alt.X("at:Q"), y, text="total:N"
    )
    layers = [drawn_bars, left.encode(y, x=alt.value(charts.NAMES - 6), text="name:N"), totals]
    said = "; ".join(f"{name} {sum(counts):,}, of which {counts[0]:,} kept" for name, *counts in named)
    return charts.drawn(alt.layer(*layers), title, said)


def _sizes(connection: duckdb.DuckDBPyConnection) -> Drawing | None:
    """Width against height, both on logarithmic axes: the darker a square, the more images."""
    (ends,) = connection.execute(
        "SELECT quantile_disc(side, [0.002, 0.998]), min(side), max(side) "
        "FROM (SELECT unnest([width, height]) AS side FROM files) WHERE side > 0"
    ).fetchall()
    if ends[0] is None:
        return None
    (low, high), least, greatest = ends
    low, high = math.log2(low), math.log2(max(high, low + 1))
    step = (high - low) / CELLS
    place = "least(greatest(floor((log2({0}) - ?) / ?), 0), ?)::INTEGER"
    counted = connection.execute(
        f"SELECT {place.format('width')}, {place.format('height')}, count(*) FROM files "
        "WHERE width > 0 AND height > 0 GROUP BY ALL ORDER BY ALL",
        [low, step, CELLS - 1] * 2,
    ).fetchall()
    cells = []
    for column, row, images in counted:
        left, right, bottom, top = (2 ** (low + at * step) for at in (column, column + 1, row, row + 1))
        said = f"{left:,.0f} to {right:,.0f} wide, {bottom:,.0f} to {top:,.0f} high: {images:,} images"
        cells.append(
            {"left": left, "right": right, "bottom": bottom, "top": top, "images": images, charts.DESCRIPTION: said}
        )
    scale = alt.Scale(type="log", base=2, domain=[2**low, 2**high], nice=False)
    opacity = alt.Opacity("images:Q", scale=alt.Scale(type="sqrt", domainMin=0, range=[0.06, 1]), legend=None)
    x = alt.X(
        "left:Q", scale=scale, title="width", axis=alt.Axis(values=[2**power for power in range(1, 17, 2)], format=",d")
    )
    y = alt.Y(
        "bottom:Q",
        scale=scale,
        title="height",
        axis=alt.Axis(values=[2**power for power in range(1, 17, 2)], format=",d"),
    )
    chart = (
        alt.Chart(charts.rows(cells), width=charts.WIDTH, height=charts.HEIGHT + 90)
        .mark_rect(color=charts.KEPT)
        .encode(x, alt.X2("right"), y, alt.Y2("top"), opacity=opacity, description=charts.described())
    )
    most = max(counted, key=lambda cell: cell[2])
    fullest = cells[counted.index(most)][charts.DESCRIPTION]
    said = f"sides from {least:,} to {greatest:,} pixels; the fullest square: {fullest}"
    remarks = [
        "logarithmic axes",
        "the stronger the colour, the more images",
        "the outermost squares hold what lies beyond",
    ]
    return Drawing("Width and height, in pixels", charts.drawn(chart, "Width and height of the images", said), remarks)
