"""Each rule that compares numbers: all that it measured, its threshold, and the pairs on either side of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import duckdb

from pipeline.report import charts, histograms
from pipeline.report.charts import Chart
from pipeline.report.samples import SPARE, Sample, distinct, looks, order
from pipeline.report.wording import shown
from pipeline.rules import RULES
from pipeline.store.sql import identifier
from pipeline.store.views.thresholds import VIEWS, failing, side

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
class Judged:
    """A rule of a stage with the number that it compares with. `column` is that of its values in its stage's view."""

    stage: str
    rule: str
    threshold: float

    @property
    def column(self) -> str:
        return identifier(self.rule)

    @property
    def measured(self) -> str:
        measure = RULES[self.rule].measure
        return MEASURED.get(measure, shown(measure.replace("_", " "), 40))

    @property
    def side(self) -> str:
        return side(RULES[self.rule])

    @property
    def fails(self) -> str:
        """SQL of whether a pair fails; a pair without a value does not."""
        return failing(RULES[self.rule], repr(self.threshold))

    @property
    def left_closed(self) -> bool:
        """Whether what equals the threshold is on the same side as what is greater."""
        return self.side in ("<", ">=")


@dataclass(frozen=True)
class Border:
    """A rule's histogram (None where nothing was measured) and the nearest pairs on both sides of its threshold.

    Those in `kept` pass every rule of the stage, those in `dropped` fail this one alone.
    """

    chart: Chart | None
    remarks: list[str]
    kept: list[Sample] = field(default_factory=list)
    dropped: list[Sample] = field(default_factory=list)


def judged(connection: duckdb.DuckDBPyConnection) -> list[Judged]:
    """The recipe's rules that compare numbers, in their order."""
    rows = connection.execute(
        "SELECT stage, rule, threshold FROM rules WHERE takes IN ('number', 'fraction') AND threshold IS NOT NULL "
        "AND stage IN ('screen', 'filter') ORDER BY position"
    ).fetchall()
    return [Judged(*row) for row in rows if row[1] in RULES]


def borders(connection: duckdb.DuckDBPyConnection, has_images: bool) -> dict[tuple[str, str], Border]:
    """(stage, rule) -> its border, in the order of the rules."""
    rules = judged(connection)
    near = _nearest(connection, rules, has_images)
    found = {}
    for rule in rules:
        others = f"failures = ({rule.fails})::INTEGER"
        groups = [f"NOT {rule.fails} AND {others}", f"NOT {rule.fails}", others, "true"]
        bars = histograms.histogram(
            connection, VIEWS[rule.stage], rule.column, groups, rule.threshold, rule.left_closed
        )
        title = f"{shown(rule.rule)}: what was measured"
        names = [group.format(rule.stage) for group in GROUPS]
        drawing = histograms.chart(bars, title, COLOURS, names, measured=rule.measured) if bars else None
        kept, dropped = (near.get((rule.stage, rule.rule, side), []) for side in (False, True))
        found[rule.stage, rule.rule] = Border(drawing, histograms.remarks(bars) if bars else [], kept, dropped)
    return found


def _nearest(
    connection: duckdb.DuckDBPyConnection, rules: list[Judged], has_images: bool
) -> Mapping[tuple[str, str, bool], list[Sample]]:
    """(stage, rule, whether dropped) -> the pairs nearest to the threshold on that side, no two that look the same."""
    if not rules:
        return {}
    drawn = [
        f"""(SELECT {number} AS number, {dropped} AS dropped, uid, {rule.column} AS value FROM {VIEWS[rule.stage]}
             WHERE failures = {int(dropped)} AND {rule.fails} = {dropped} AND isfinite({rule.column})
             ORDER BY abs({rule.column} - {rule.threshold!r}), {order("uid")}, uid LIMIT {BORDER * SPARE})"""
        for number, rule in enumerate(rules)
        for dropped in (False, True)
    ]
    key = "images.key, images.sha256" if has_images else "NULL, NULL"
    join = "LEFT JOIN (SELECT url, key, sha256 FROM images) AS images USING (url)" if has_images else ""
    # The drawn pairs are few: the texts are looked up once, for all rules together.
    rows = connection.execute(
        f"""WITH drawn AS MATERIALIZED ({" UNION ALL ".join(drawn)})
            SELECT number, dropped, uid, url, text, {key}, value
            FROM drawn JOIN (SELECT uid, url, text FROM pairs) AS pairs USING (uid) {join}
            ORDER BY number, dropped, abs(value - [{", ".join(repr(rule.threshold) for rule in rules)}][number + 1]),
                     {order("uid")}, uid"""
    ).fetchall()
    groups: dict[tuple[str, str, bool], list[Sample]] = {}
    for number, dropped, uid, url, text, image, content, value in rows:
        rule = rules[number]
        sample = Sample(uid, url, text, image, value=value, content=content)
        groups.setdefault((rule.stage, rule.rule, dropped), []).append(sample)
    return {at: distinct(group, looks(at[0]), BORDER) for at, group in groups.items()}
