"""The page out of its template. Everything is escaped: texts, urls and class names come from outside."""

import unicodedata
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report.funnel import quantity
from pipeline.report.retrieval import CUTS, WAYS

REPLACEMENT = "\ufffd"
# These would turn the direction of the text around them.
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def render(**contents: Any) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "quantity": quantity, "count": count, "percent": percent, "size": size}
    environment.globals |= {"CUTS": CUTS, "WAYS": WAYS}
    return environment.get_template("page.html.j2").render(contents)


def shown(text: str | None, longest: int = 300) -> str:
    """A text from outside with its control characters made visible, cut off where it is longer than `longest`."""
    text = text or ""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(REPLACEMENT if _is_hidden(character) else character for character in cut)


def _is_hidden(character: str) -> bool:
    return character in _DIRECTIONS or (character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"))


def count(number: int) -> str:
    return f"{number:,}"


def percent(share: float | None, decimals: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{decimals}f}"


def size(number: int) -> str:
    """Bytes, as a person reads them."""
    if number < 1000:
        return f"{number:,} bytes"
    return f"{number / 1e3:,.1f} kB" if number < 1_000_000 else f"{number / 1e6:,.1f} MB"
