"""What a detector named: how many boxes of each class, and how sure it was of them."""

from dataclasses import dataclass
from typing import Any

import altair as alt
import duckdb

from pipeline.report import charts
from pipeline.report.charts import Chart
from pipeline.report.wording import shown
from pipeline.store.dataset import Dataset
from pipeline.store.sql import parquet

LABELS = 20


@dataclass(frozen=True)
class Labels:
    """One region extractor's classes. `others` of them are not drawn; `below` boxes did not pass the threshold."""

    chart: Chart
    others: int
    boxes: int
    below: int


def labels(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> dict[str, Labels]:
    """Region extractor -> its classes, where it has any and found any."""
    found = {}
    for name in dataset.extractors():
        identity = dataset.features(name).manifest.info["identity"]
        named = identity["kind"] == "region" and identity.get("classes") and "classes" in identity["columns"]
        files = dataset.feature_files(name)
        if named and files and (counted := _counted(connection, files, identity)):
            found[name] = counted
    return found


def _counted(connection: duckdb.DuckDBPyConnection, files: list[Any], identity: dict[str, Any]) -> Labels | None:
    threshold = identity["settings"].get("confidence", 0.0)  # imported regions have none
    rows = connection.execute(
        f"""SELECT class, count(*) FILTER (confidence >= $1) AS sure,
                   avg(confidence) FILTER (confidence >= $1), count(*)
            FROM (SELECT unnest(classes) AS class, unnest(confidences) AS confidence FROM {parquet(files)})
            WHERE class >= 0 GROUP BY class ORDER BY sure DESC, class""",
        [threshold],
    ).fetchall()
    counted = [(identity["classes"][label], sure, mean) for label, sure, mean, _ in rows if sure]
    if not counted:
        return None
    sure = sum(number for _, number, _ in counted)
    drawing = _drawing([(shown(label, 28), number, mean) for label, number, mean in counted[:LABELS]])
    return Labels(drawing, max(len(counted) - LABELS, 0), sure, sum(number for *_, number in rows) - sure)


def _drawing(counted: list[tuple[str, int, float]]) -> Chart:
    bars: list[dict[str, Any]] = [
        {"place": place, "label": label, "boxes": boxes, "sure": round(mean, 3), "text": f"{boxes:,} · {mean:.2f}"}
        | {charts.DESCRIPTION: f"{label}: {boxes:,} boxes, mean confidence {mean:.2f}"}
        for place, (label, boxes, mean) in enumerate(counted)
    ]
    most = max(boxes for _, boxes, _ in counted)
    room = [charts.NAMES, charts.WIDTH - 8 * len(f"{most:,} · 0.00")]  # behind the bars stand the numbers
    y = alt.Y("place:O", axis=None, scale=alt.Scale(paddingInner=0.3))
    x = alt.X("boxes:Q", axis=None, scale=alt.Scale(domain=[0, most], range=room, nice=False))
    base = alt.Chart(charts.rows(bars), width=charts.WIDTH, height=20 * len(bars))
    opacity = alt.Opacity("sure:Q", scale=alt.Scale(domain=[0, 1], range=[0.25, 1]), legend=None)
    layers = [
        base.mark_bar(color=charts.KEPT).encode(x, y, opacity=opacity, description=charts.described()),
        base.mark_text(align="left", dx=4, color=charts.MUTED, aria=False).encode(x, y, text="text:N"),
        base.mark_text(align="right", aria=False, limit=charts.NAMES - 8).encode(
            y, x=alt.value(charts.NAMES - 6), text="label:N"
        ),
    ]
    said = "; ".join(bar[charts.DESCRIPTION] for bar in bars)
    return charts.drawn(alt.layer(*layers), "Labels by number of boxes", said)
