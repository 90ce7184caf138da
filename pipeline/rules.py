"""The rules by name. A rule is data: what it measures (SQL), which side of its threshold fails, and its source.

`measure` is an expression over the stage's signals: for `screen` the table `signals` made in `pipeline.screen`, for
`filter` the one made in `pipeline.filter`. A NULL never fails. A recipe names the rules it wants, with thresholds, in
the order in which the funnel counts them.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rule:
    """One named predicate. A pair fails where `measure fails_if threshold` holds."""

    name: str
    stage: Literal["screen", "filter"]
    measure: str
    fails_if: Literal["<", "<=", ">", ">="]
    source: str
    meaning: str

    def predicate(self, threshold: float) -> str:
        """The SQL condition under which a pair fails."""
        return f"({self.measure}) {self.fails_if} {threshold!r}"


_ALIGN = "ALIGN (Jia et al. 2021), section 3"

_RULES = (
    Rule(
        "max_images_per_text", "screen", "images_per_text", ">", _ALIGN, "its text is shared by more images than this"
    ),
    Rule("min_words", "screen", "words", "<", _ALIGN, "its text has fewer words"),
    Rule("max_words", "screen", "words", ">", _ALIGN, "its text has more words"),
    Rule(
        "vocabulary",
        "screen",
        "rarest_rank",
        ">",
        _ALIGN,
        "its text holds a word or word pair that is not among this many most frequent ones of the raw corpus",
    ),
    Rule("min_side", "filter", "shorter_side", "<=", _ALIGN, "its image's shorter side is not above this many pixels"),
    Rule(
        "max_aspect",
        "filter",
        "aspect",
        ">=",
        _ALIGN,
        "its image's longer side is this many times the shorter, or more",
    ),
    Rule(
        "max_texts_per_image",
        "filter",
        "texts_per_image",
        ">",
        _ALIGN,
        "its image, by content, has more texts than this",
    ),
    Rule(
        "max_copies",
        "filter",
        "copy",
        ">",
        "COYO-700M: one row an (image, text)",
        "an earlier pair has the same text on a byte-identical image",
    ),
)

RULES = {rule.name: rule for rule in _RULES}


def rules_of(stage: str) -> list[str]:
    """Names of the rules that a recipe may ask for in this stage."""
    return [rule.name for rule in _RULES if rule.stage == stage]
