"""What another threshold is to the views `screened` and `filtered`: SQL of who fails, and what SQL cannot know."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.rules import RULES, Rule
from pipeline.store.sql import double, identifier

_OF_OTHER_PAIRS = re.compile(r"\b(copy|look_alike|texts_per_image|duplicate_distance|semantic_cosine)\b")

VIEWS = {"screen": "screened", "filter": "filtered"}
"""Stage -> the view of what it measured of each pair."""
RULES_QUERY = "SELECT stage, rule, threshold, setting, takes, measure FROM rules ORDER BY position"


@dataclass(frozen=True)
class Setting:
    """A rule of the dataset that compares numbers, as its stage applied it."""

    rule: Rule
    threshold: float
    """As the recipe has it: for a fraction that fraction."""
    cutoff: float
    """What is compared with."""

    @property
    def view(self) -> str:
        """The one that has what was measured of each pair, in the rule's `column`."""
        return VIEWS[self.rule.stage]

    @property
    def column(self) -> str:
        return identifier(self.rule.name)

    @property
    def fails(self) -> str:
        """SQL, over the view, of whether a pair fails; never NULL."""
        return self.fails_at(self.cutoff)

    def fails_at(self, cutoff: float) -> str:
        """The same of another cutoff."""
        return failing(self.rule, double(cutoff))


def settings_of(rows: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """Those of the rows of `RULES_QUERY` that compare numbers, in their order."""
    found = []
    for row in rows:
        rule, cutoff = RULES.get(str(row["rule"])), row["threshold"]
        if rule is not None and cutoff is not None and row["takes"] in ("number", "fraction"):
            # `rules` has of a fraction the cutoff, and in words "0.3 (from 0.2731 up)".
            threshold = float(str(row["setting"]).split()[0]) if rule.takes == "fraction" else float(cutoff)
            found.append(Setting(rule, threshold, float(cutoff)))
    return found


def side(rule: Rule) -> str:
    """The comparison by which a measured value fails."""
    return "<" if rule.fails_if == "not in top" else rule.fails_if


def failing(rule: Rule, cutoff: str, column: str | None = None) -> str:
    """SQL, over the view of the rule's stage, of whether a pair fails at this cutoff (SQL as well); never NULL.

    `column`: of the values, where another rule that measures the same has named it.
    """
    return f"coalesce({identifier(column or rule.name)} {side(rule)} {cutoff}, false)"


def others_pass(changed: Sequence[Setting]) -> str:
    """SQL, over the view of their stage, of whether a pair fails no rule of it but, perhaps, these."""
    return f"failures = {' + '.join(['0', *(f'({setting.fails})::INTEGER' for setting in changed)])}"


def borders_query(cutoffs: Sequence[tuple[Setting, float]], pairs: int, images: bool) -> str:
    """SQL of the pairs nearest to each cutoff on both sides: (place, passes, value, uid, text, url, key, content).

    `place` is the cutoff's in the sequence. Nearest first, at most so many `pairs` a side, of those that fail no other
    rule of the stage; equally near ones by uid, which is as good as chance. `key` and `content`, which copies of a
    picture share, are NULL where there is no image, and everywhere without `images`.
    """
    sides = []
    for place, (setting, cutoff) in enumerate(cutoffs):
        fails, column = setting.fails_at(cutoff), setting.column
        below_fails = side(setting.rule) in ("<", "<=")
        for passes, condition in ((True, f"NOT {fails}"), (False, fails)):
            distance = column if passes is below_fails else f"-{column}"
            sides.append(
                f"(SELECT {place} AS place, {passes} AS passes, {column} AS value, {distance} AS nearness, uid "
                f"FROM {setting.view} WHERE {others_pass([setting])} AND {condition} AND isfinite({column}) "
                f"ORDER BY nearness, uid LIMIT {pairs:d})"
            )
    there = "SELECT url, key, sha256 AS content FROM images WHERE status = 'ok'"
    found = there if images else "SELECT NULL AS url, NULL AS key, NULL AS content"
    # The pairs are few: their texts are looked up once, for all cutoffs together.
    return (
        f"WITH border AS MATERIALIZED ({' UNION ALL '.join(sides)}) "
        "SELECT place, passes, value, uid, text, url, key, content FROM border "
        f"JOIN (SELECT uid, text, url FROM pairs) USING (uid) LEFT JOIN ({found}) USING (url) "
        "ORDER BY place, passes DESC, nearness, uid"
    )


def looks_at_others(takes: str, measure: str) -> bool:
    """Whether a rule's verdict on a pair hangs on which other pairs there are."""
    return takes == "fraction" or _OF_OTHER_PAIRS.search(measure) is not None
