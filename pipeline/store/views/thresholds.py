"""What another threshold is to the views `screened` and `filtered`: SQL of who fails, and what SQL cannot know."""

import re

from pipeline.rules import Rule
from pipeline.store.sql import identifier

_OF_OTHER_PAIRS = re.compile(r"\b(copy|look_alike|texts_per_image|duplicate_distance|semantic_cosine)\b")


VIEWS = {"screen": "screened", "filter": "filtered"}
"""Stage -> the view of what it measured of each pair."""


def side(rule: Rule) -> str:
    """The comparison by which a measured value fails."""
    return "<" if rule.fails_if == "not in top" else rule.fails_if


def failing(rule: Rule, cutoff: str, column: str | None = None) -> str:
    """SQL, over the view of the rule's stage, of whether a pair fails at this cutoff (SQL as well); never NULL.

    `column`: of the values, where another rule that measures the same has named it.
    """
    return f"coalesce({identifier(column or rule.name)} {side(rule)} {cutoff}, false)"


def looks_at_others(takes: str, measure: str) -> bool:
    """Whether a rule's verdict on a pair hangs on which other pairs there are."""
    return takes == "fraction" or _OF_OTHER_PAIRS.search(measure) is not None
