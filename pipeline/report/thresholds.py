"""Each rule that compares numbers: all that it measured, its threshold, and the pairs on either side of it."""

from dataclasses import dataclass, field

import duckdb

from pipeline.report import charts, histograms
from pipeline.report.charts import Chart
from pipeline.report.samples import SPARE, Sample, distinct, looks
from pipeline.report.wording import shown
from pipeline.rules import Rule
from pipeline.store.sql import named_rows
from pipeline.store.views.thresholds import RULES_QUERY, Setting, borders_query, others_pass, settings_of, side

BORDER = 10
COLOURS = [charts.KEPT, charts.KEPT_SOFT, charts.DROPPED, charts.DROPPED_SOFT]
GROUPS = [
    "kept by every rule of {}",
    "kept by this rule, dropped by another of {}",
    "dropped by this rule, by no other of {}",
    "dropped by this rule and by others of {}",
]
"""What a bar's pairs are to the stage: a later one may drop them all the same."""
MEASURED = {
    "images_per_text": "images with the text",
    "texts_per_url": "texts of the url",
    "words": "words of the text",
    "rarest_rank": "rank of the rarest word or pair of words",
    "characters": "characters of the text",
    "repetition": "share of repeated words",
    "rarest_word_frequency": "times that the corpus holds the rarest word",
    "character_repetition": "share of repeated runs of 10 characters",
    "word_repetition": "share of repeated runs of 10 words",
    "language_score": "probability of the language",
    "shorter_side": "shorter side, in pixels",
    "aspect": "longer side ÷ shorter side",
    "bytes": "size of the file, in bytes",
    "megapixels": "million pixels",
    "texts_per_image": "texts of the image",
    "copy": "place among equal pairs",
    "look_alike": "place among pairs that look alike",
    "duplicate_distance": "bits of 64 that differ",
    "evaluation_distance": "bits of 64 that differ",
    "evaluation_cosine": "cosine with an evaluation image",
    "semantic_cosine": "cosine with another image",
    "clip_score": "cosine of image and text",
    "alignment": "cosine of image and text",
    "nsfw": "probability",
}
"""What stands under the axis of a measure, with its unit where it has one. Others stand there by their names."""


@dataclass(frozen=True)
class Border:
    """A rule's histogram (None where nothing was measured) and the nearest pairs on both sides of its threshold.

    Those in `kept` pass every rule of the stage, those in `dropped` fail this one alone.
    """

    chart: Chart | None
    remarks: list[str]
    kept: list[Sample] = field(default_factory=list)
    dropped: list[Sample] = field(default_factory=list)


def borders(connection: duckdb.DuckDBPyConnection, has_images: bool) -> dict[tuple[str, str], Border]:
    """(stage, rule) -> its border, in the order of the rules."""
    settings = settings_of(named_rows(connection, RULES_QUERY))
    near = _nearest(connection, settings, has_images)
    found: dict[tuple[str, str], Border] = {}
    for setting in settings:
        stage, rule, fails = setting.rule.stage, setting.rule.name, setting.fails
        others = others_pass([setting])
        groups = [f"NOT {fails} AND {others}", f"NOT {fails}", others, "true"]
        left_closed = side(setting.rule) in ("<", ">=")  # what equals the cutoff goes with what is greater
        bars = histograms.histogram(connection, setting.view, setting.column, groups, setting.cutoff, left_closed)
        title = f"{shown(rule)}: what was measured"
        names = [group.format(stage) for group in GROUPS]
        drawing = histograms.chart(bars, title, COLOURS, names, measured=_measured(setting.rule)) if bars else None
        kept, dropped = (near.get((stage, rule, passes), []) for passes in (True, False))
        found[stage, rule] = Border(drawing, histograms.remarks(bars) if bars else [], kept, dropped)
    return found


def _measured(rule: Rule) -> str:
    return MEASURED.get(rule.measure, shown(rule.measure.replace("_", " "), 40))


def _nearest(
    connection: duckdb.DuckDBPyConnection, settings: list[Setting], has_images: bool
) -> dict[tuple[str, str, bool], list[Sample]]:
    """(stage, rule, whether it passes) -> the pairs nearest to the cutoff there, no two that look the same."""
    if not settings:
        return {}
    query = borders_query([(setting, setting.cutoff) for setting in settings], BORDER * SPARE, has_images)
    groups: dict[tuple[str, str, bool], list[Sample]] = {}
    for row in named_rows(connection, query):
        rule = settings[row["place"]].rule
        sample = Sample(row["uid"], row["url"], row["text"], row["key"], value=row["value"], content=row["content"])
        groups.setdefault((rule.stage, rule.name, row["passes"]), []).append(sample)
    return {at: distinct(group, looks(at[0]), BORDER) for at, group in groups.items()}
