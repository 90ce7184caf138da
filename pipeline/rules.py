"""The rules by name. A rule is data: what it measures (SQL), which side of its threshold fails, and its source.

`measure` is an expression over a pair's columns and its signals (`pipeline.signals`), which are measured only where a
rule's expression names them. A NULL never fails, and NaN is one. A recipe names the rules
it wants, with thresholds, in the order in which the funnel counts them; `min_` and `max_` keep a pair that is right on
the threshold, `_above` and `_below` drop it.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.store.sql import double, literal

Side = Literal["<", "<=", ">", ">=", "in", "not in", "found", "not in top"]


@dataclass(frozen=True)
class Rule:
    """One named predicate. A pair fails where `measure fails_if threshold` holds.

    A side "found" takes `true` and fails where the measure is not NULL; "in" and "not in" take names; "not in top"
    takes the fraction of pairs that pass, those with the greatest measure.
    """

    name: str
    stage: Literal["screen", "filter"]
    measure: str
    fails_if: Side
    source: str
    meaning: str

    @property
    def takes(self) -> str:
        return {"in": "names", "not in": "names", "found": "true", "not in top": "fraction"}.get(
            self.fails_if, "number"
        )

    def predicate(self, threshold: Any) -> str:
        """The SQL condition under which a pair fails. For "not in top" `threshold` is the least measure that passes."""
        if self.fails_if == "found":
            return f"({self.measure}) IS NOT NULL"
        if self.fails_if in ("in", "not in"):
            return f"({self.measure}) {self.fails_if} ({', '.join(map(literal, threshold))})"
        side = "<" if self.fails_if == "not in top" else self.fails_if
        return f"{self.value} {side} {double(threshold)}"

    @property
    def condition(self) -> str:
        """When a pair fails, for people; the threshold stands beside it."""
        return {"found": "is found", "in": "is one of", "not in": "is none of", "not in top": "is below the top"}.get(
            self.fails_if, f"{self.measure} {self.fails_if}"
        )

    @property
    def value(self) -> str:
        """SQL of the number that a verdict records. NaN is as good as not measured; infinities are numbers."""
        if self.takes in ("names", "true"):
            return "NULL::DOUBLE"
        return f"nullif(TRY_CAST(({self.measure}) AS DOUBLE), {double(math.nan)})"

    @property
    def detail(self) -> str:
        """SQL of the words that a verdict records, where the measure is no number."""
        return f"({self.measure if self.takes in ('names', 'true') else 'NULL'})::VARCHAR"


_ALIGN = "ALIGN (Jia et al. 2021), section 3"
_CC12M = "CC12M (Changpinyo et al. 2021), section 2"
_COYO = "COYO-700M (Byeon et al. 2022), filtering"
_LAION = "LAION-400M (Schuhmann et al. 2021), section 2"
_DATACOMP = "DataComp (Gadre et al. 2023), section 3.4 and appendix on filtering"
_JUICER = "Data-Juicer (Chen et al. 2024), operators"
_METACLIP = "MetaCLIP (Xu et al. 2024), section 3 and algorithm 1"
_SEMDEDUP = "SemDeDup (Abbas et al. 2023), section 3"
_CC3M = "CC3M (Sharma et al. 2018), section 3"
_OURS = "PairMill"

_SCHEME = r"lower(regexp_extract(url, '^([A-Za-z][A-Za-z0-9+.-]*):', 1))"
HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?(?P<host>\[[^\]/?#@]*\]|[^\[\]/?#:@]+?)\.?(?::\d*)?(?:[/?#]|$)"
"""RE2: a url's host, without what stands around it; nothing where the url has none."""
_HOST = f"lower(regexp_extract(url, {literal(HOST)}, 1))"
# The last one of the path; CDNs put sizes behind it (photo.jpg:large, photo.jpg!thumb). A bare host has none.
_EXTENSION = r"lower(regexp_extract(url, '^[^/?#]+://[^/?#]+/[^?#]*\.([A-Za-z0-9]{1,5})(?:[?#;:!&]|$)', 1))"
# Not logo@2x.png, an image for a sharp screen. A domain's end in mixed case is the beginning of a sentence.
_EMAIL = (
    r"[A-Za-z0-9._%+-]{1,64}@"
    r"(?:[A-Za-z-][A-Za-z0-9-]*|\d+(?:[A-WYZa-wyz-][A-Za-z0-9-]*|[Xx][A-Za-z0-9-]+)?)"
    r"(?:\.[A-Za-z0-9-]+)*\.(?:[a-z]{2,24}|[A-Z]{2,24})\b"
)
# Only what is written as a telephone number is: article numbers, dates and years are as long.
_PHONE = "".join(
    [
        r"(?:^|[^\pL\d./+-])(",
        r"\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}[ .-]?\d{3,4}[ .-]?\d{3,4}",  # +30 697 435 0179
        r"|\+[1-9]\d{0,2} ?(?:\(0\) ?)?\d(?:[ .]\d\d){4}",  # +33 1 23 45 67 89
        r"|\((?:0\d{1,4}|[2-9]\d\d)\) ?\d{3,4}[ .-]\d{3,4}",  # (402) 505-6600, (030) 1234 5678
        r"|(?:1[ .-])?[2-9]\d\d(?:-[2-9]\d\d-|\.[2-9]\d\d\.)\d{4}",  # 1-402-505-6600
        r")(?:$|[^\pL\d/-])",
    ]
)
# A text that is nothing but a file's or a camera's name for it, an address, or what a page says on every picture. A
# file name with blanks ("Fox Crochet Hat.jpg") is left alone: somebody wrote it.
_BOILERPLATE = "|".join(
    [
        r"(?i)^[^\pL\pN]*(?:untitled|thumbnail|placeholder|loading|avatar|logo|banner",
        r"(?:no|default|missing) (?:image|photo|picture|thumbnail|avatar)(?: (?:available|yet|found|selected))?",
        r"(?:image|photo|picture) (?:not available|not found|coming soon|unavailable|placeholder)",
        r"(?:image|photo|picture|img|slide|gallery image|product image|featured image)(?: #?\d+(?: of \d+)?)?",
        r"(?:profile|user|author|cover|member) (?:photo|picture|image|avatar|pic)|embedded image permalink",
        r"(?:click|tap)(?: here)? (?:to|for) (?:enlarge|zoom(?: in)?|expand|open|view|more(?: info)?|"
        r"(?:view |see )?(?:a )?(?:full[ -]?size|large|larger)(?: (?:image|photo|picture|view|version))?)",
        r"(?:view|see|show) (?:a )?(?:larger|full[ -]?size)(?: (?:image|photo|picture|version))?|enlarge(?: image)?",
        r"(?:share|pin|save|tweet)(?: this| it)? (?:on|to) (?:facebook|twitter|pinterest|linkedin|whatsapp)|click here",
        r"(?:read|learn|see|view) more|continue reading|add(?:ed)? to (?:cart|bag|basket|wishlist|favou?rites)",
        r"(?:img|dscn?|dscf|dcim|pict?|pxl|screenshot|screen shot|image|photo|scan|wp|vid|mvi|gopr|whatsapp image)"
        r"[ _-]*\d[\d _.,:()-]*(?:(?:at|copy|edit(?:ed)?)[\d _.,:()-]*)?(?:[ap]m)?(?:\.\w{2,4})?",
        r"p\d{7}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?:https?://|www\.)\S+",
        r"[\pL\pM\pN_.()%+-]+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif))[^\pL\pN]*$",
    ]
)


def _found(pattern: str, group: int = 0) -> str:
    return f"nullif(regexp_extract(text, {literal(pattern)}, {group}), '')"


def _screen(name: str, measure: str, fails_if: Side, source: str, meaning: str) -> Rule:
    return Rule(name, "screen", measure, fails_if, source, meaning)


def _filter(name: str, measure: str, fails_if: Side, source: str, meaning: str) -> Rule:
    return Rule(name, "filter", measure, fails_if, source, meaning)


_RULES = (
    _screen("max_images_per_text", "images_per_text", ">", _ALIGN, "its text is shared by more images than this"),
    _screen("max_texts_per_url", "texts_per_url", ">", _ALIGN, "its url has more texts than this"),
    _screen("min_words", "words", "<", _ALIGN, "its text has fewer words"),
    _screen("max_words", "words", ">", _ALIGN, "its text has more words"),
    _screen(
        "vocabulary",
        "rarest_rank",
        ">",
        _ALIGN,
        "its text holds a word or word pair that is not among this many most frequent ones of the raw corpus",
    ),
    _screen("min_characters", "characters", "<", _LAION, "its text has fewer characters"),
    _screen("max_characters", "characters", ">", _COYO, "its text has more characters"),
    _screen("max_repetition", "repetition", ">", _CC12M, "a greater share of its words repeats an earlier one"),
    _screen(
        "min_word_frequency",
        "rarest_word_frequency",
        "<",
        _CC12M,
        "its text holds a word that the raw corpus holds less often",
    ),
    _screen(
        "max_character_repetition",
        "character_repetition",
        ">",
        _JUICER,
        "a greater share of its runs of 10 characters occurs more than once in it",
    ),
    _screen(
        "max_word_repetition",
        "word_repetition",
        ">",
        _JUICER,
        "a greater share of its runs of 10 words occurs more than once in it",
    ),
    _screen("languages", "language", "not in", _DATACOMP, "its text is in none of these languages"),
    _screen("min_language_score", "language_score", "<", _OURS, "its language is less certain"),
    _screen("schemes", _SCHEME, "not in", _OURS, "its url has another scheme"),
    _screen("extensions", f"nullif({_EXTENSION}, '')", "not in", _CC12M, "its url ends in another file extension"),
    _screen("blocked_extensions", f"nullif({_EXTENSION}, '')", "in", _CC12M, "its url ends in one of these extensions"),
    _screen("hosts", _HOST, "not in", _OURS, "its url is on another host"),
    _screen("blocked_hosts", "blocked_by", "found", _OURS, "its host is on the blocklist"),
    _screen("no_email", _found(_EMAIL), "found", _OURS, "its text holds an e-mail address"),
    _screen("no_phone", _found(_PHONE, 1), "found", _OURS, "its text holds a telephone number"),
    _screen("no_boilerplate", _found(_BOILERPLATE), "found", _CC3M, "its text is a file name or a page's boilerplate"),
    _screen(
        "balanced_queries",
        "query_draw",
        ">",
        _METACLIP,
        "its text holds no entry of the query list, or only entries with more pairs than this and it was not drawn",
    ),
    _filter("side_above", "shorter_side", "<=", _ALIGN, "its image's shorter side is not above this many pixels"),
    _filter("min_side", "shorter_side", "<", _DATACOMP, "its image's shorter side has fewer pixels"),
    _filter("aspect_below", "aspect", ">=", _ALIGN, "its image's longer side is this many times the shorter, or more"),
    _filter("max_aspect", "aspect", ">", _DATACOMP, "its image's longer side is more than this many times the shorter"),
    _filter("min_bytes", "bytes", "<", _LAION, "its image file has fewer bytes"),
    _filter("max_bytes", "bytes", ">", _OURS, "its image file has more bytes"),
    _filter("min_megapixels", "megapixels", "<", _OURS, "its image has fewer million pixels"),
    _filter("max_megapixels", "megapixels", ">", _OURS, "its image has more million pixels"),
    _filter("max_texts_per_image", "texts_per_image", ">", _ALIGN, "its image, by content, has more texts than this"),
    _filter("max_copies", "copy", ">", _LAION, "an earlier pair has the same text on a byte-identical image"),
    _filter(
        "max_look_alikes",
        "look_alike",
        ">",
        _COYO,
        "an earlier pair has the same text on an image of the same perceptual hash",
    ),
    _filter(
        "near_duplicates",
        "duplicate_distance",
        "<=",
        _COYO,
        "the perceptual hash (64 bits) of an image that is as large or larger differs in no more bits than this",
    ),
    _filter(
        "near_evaluation",
        "evaluation_distance",
        "<=",
        _ALIGN,
        "an evaluation image's perceptual hash (64 bits) differs in no more bits than this",
    ),
    _filter(
        "evaluation_similarity",
        "evaluation_cosine",
        ">",
        "DataComp (Gadre et al. 2023), appendix on decontamination",
        "the cosine of its image's embedding with an evaluation image's is greater",
    ),
    _filter(
        "semantic_duplicates",
        "semantic_cosine",
        ">",
        _SEMDEDUP,
        "in its cluster, the cosine of its image's embedding with one farther from the centre is greater",
    ),
    _filter("min_clip_score", "clip_score", "<", _LAION, "the cosine of image and text under CLIP is less"),
    _filter(
        "top_clip_fraction",
        "clip_score",
        "not in top",
        _DATACOMP,
        "the cosine of image and text under CLIP is not in this fraction of the pool",
    ),
    _filter("min_alignment", "alignment", "<", _OURS, "the cosine of image and text under a run of our own is less"),
    _filter(
        "top_alignment_fraction",
        "alignment",
        "not in top",
        _DATACOMP,
        "the cosine of image and text under a run of our own is not in this fraction of the pool",
    ),
    _filter("max_nsfw", "nsfw", ">", _COYO, "its image is more surely a nude"),
)

TAKEN = frozenset({"quarantined", "repeated_pair"})
"""What else the funnel counts."""

RULES = {rule.name: rule for rule in _RULES}


def rules_of(stage: str) -> list[str]:
    """Names of the rules that a recipe may ask for in this stage."""
    return [rule.name for rule in _RULES if rule.stage == stage]


def rule_of(stage: str, name: str, threshold: Any) -> Rule:
    """The rule by name; where the threshold is the recipe's own SQL, a rule made of it."""
    condition = getattr(threshold, "keep_if", None)
    if condition is None:
        return RULES[name]
    return Rule(
        name,
        "screen" if stage == "screen" else "filter",
        f"CASE WHEN NOT ({condition}) THEN 'false' END",
        "found",
        "the recipe",
        condition,
    )


def check_threshold(stage: str, name: str, threshold: Any) -> None:
    """Raise ValueError, with what is allowed, where the stage has no such rule or the rule takes something else."""
    if isinstance(threshold, dict):
        if name in RULES or name in TAKEN:
            raise ValueError(f"{name!r} is the name of something that is there already; name yours otherwise")
        condition = threshold.get("keep_if")
        if set(threshold) != {"keep_if"} or not isinstance(condition, str) or not condition.strip():
            raise ValueError(f'the rule {name!r} takes {{ keep_if = "SQL" }} and nothing else')
        return
    if name not in rules_of(stage):
        raise ValueError(
            f"there is no rule {name!r} in this stage; allowed: {', '.join(rules_of(stage))}, "
            'or one of your own: name = { keep_if = "SQL" }'
        )
    takes = RULES[name].takes
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool) and math.isfinite(threshold)
    fits = {
        "true": threshold is True,
        "names": isinstance(threshold, list) and all(isinstance(entry, str) for entry in threshold) and threshold,
        "number": is_number,
        "fraction": is_number and 0 <= threshold <= 1,
    }[takes]
    if not fits:
        wanted = {"true": "true", "names": "a list of names", "number": "a number", "fraction": "a number from 0 to 1"}
        raise ValueError(f"the rule {name!r} takes {wanted[takes]}, not {threshold!r}")
    for entry in threshold if takes == "names" else ():
        if entry != entry.lower() or entry.startswith(".") or not entry.strip():
            raise ValueError(f"the rule {name!r}: {entry!r} matches nothing: lower case, please, and no dot before it")


def listing() -> str:
    """All rules as a text for people."""
    lines = []
    for stage, about in (("screen", "url and text, before the download"), ("filter", "the image")):
        lines += [f"[{stage}.rules]  {about}", ""]
        for rule in (RULES[name] for name in rules_of(stage)):
            lines += [
                f"  {rule.name} = {rule.takes.upper()}",
                f"      drops a pair where {rule.meaning}",
                f"      {rule.source}",
            ]
        lines += ['  NAME = { keep_if = "SQL" }', "      drops a pair where the recipe's own SQL is false", ""]
    return "\n".join(lines).rstrip()
