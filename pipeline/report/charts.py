"""What the page's charts share: Altair's specifications become SVG that stands in the page by itself.

Nothing is fetched and nothing runs: Vega draws once, while the report is made. Colours are CSS variables, so that one
drawing serves the light page, the dark one and the print; letters are the page's own. What a mark says when asked
(Vega's `description`) becomes its `<title>`, which a browser shows under the pointer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import altair as alt
import vl_convert
from markupsafe import Markup

from pipeline.store.atomic import digest

WIDTH, HEIGHT = 336, 160
"""In pixels, of a chart that stands beside others on a wide page and alone on a narrow one: text keeps its size."""
NAMES = 120
"""Pixels for the names to the left of horizontal bars."""
TEXT = 11
INK, MUTED, LINE, PAPER = "var(--ink)", "var(--muted)", "var(--line)", "var(--paper)"
KEPT, KEPT_SOFT = "var(--kept)", "var(--kept-soft)"
DROPPED, DROPPED_SOFT = "var(--dropped)", "var(--dropped-soft)"
DESCRIPTION = "described"
"""The field of a row that holds what its mark says."""

PLAIN_ZERO = "datum.value ? datum.label : '0'"
"""For axes with units of thousands, where Vega would write 0k."""

_SVG = "http://www.w3.org/2000/svg"
# Of no use in a page, or the page's own business.
_IDLE = frozenset({"class", "role", "pointer-events", "font-family", "aria-roledescription", "aria-hidden", "version"})
ElementTree.register_namespace("", _SVG)


@dataclass(frozen=True)
class Chart:
    """A drawing, what it shows in one line, and the same in words for those who do not see it."""

    title: str
    svg: Markup
    alternative: str


def rows(values: Sequence[dict[str, Any]]) -> alt.Data:
    """Rows for a chart, without the data frames that Altair would make of them."""
    return alt.Data(values=list(values))


def described() -> alt.Description:
    """The encoding by which marks get their `<title>`, out of the rows' field DESCRIPTION."""
    return alt.Description(f"{DESCRIPTION}:N")


def drawn(chart: Any, title: str, alternative: str) -> Chart:
    """Draw an Altair chart. Its texts must have passed `wording.shown`: XML holds no control characters."""
    axis = {"labelColor": MUTED, "titleColor": MUTED, "labelFontSize": TEXT, "titleFontSize": TEXT}
    lines = {"gridColor": LINE, "domainColor": LINE, "ticks": False, "labelPadding": 4, "titleFontWeight": "normal"}
    config = {
        "background": None,
        "font": "sans-serif",
        "padding": {"left": 2, "right": 2, "top": 4, "bottom": 2},
        "autosize": {"type": "fit", "contains": "padding"},
        "view": {"stroke": None},
        "axis": axis | lines,
        "axisX": {"grid": False, "labelFlush": True},
        "axisY": {"domain": False},
        "text": {"color": INK, "fontSize": TEXT},
    }
    spec = chart.to_dict(validate=False)  # which takes longer than to draw
    version = alt.SCHEMA_VERSION.rsplit(".", 1)[0]
    svg = vl_convert.vegalite_to_svg(spec, version, config=config, allowed_base_urls=[])
    return Chart(title, _inlined(svg, title), alternative)


def _inlined(svg: str, title: str) -> Markup:
    """The drawing as an element of the page, no wider than it was drawn and as narrow as it must."""
    root = ElementTree.fromstring(svg)
    _thin_out(root)
    _number_ids(root, "")  # Vega numbers them through all that a process draws
    _number_ids(root, digest(ElementTree.tostring(root, encoding="unicode"))[:8])
    width, _ = root.attrib.pop("width"), root.attrib.pop("height")
    root.set("style", f"max-width: {width}px")
    root.set("role", "img")
    root.set("aria-label", title)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _thin_out(parent: ElementTree.Element) -> None:
    """Drop what is not seen, and give each mark its title."""
    for child in list(parent):
        _thin_out(child)
        group = child.tag == f"{{{_SVG}}}g"
        said = child.attrib.pop("aria-label", None)
        unseen = child.get("opacity") == "0" or child.get("display") == "none" or (group and not len(child))
        flat = child.tag == f"{{{_SVG}}}path" and child.get("d") in ("", "M0,0h0v0h0Z")
        background = child.get("class") == "background" and child.get("fill", "none") == "none"
        if unseen or flat or (background and child.get("stroke") is None):
            parent.remove(child)
            continue
        if said and not group:
            ElementTree.SubElement(child, f"{{{_SVG}}}title").text = said
        for name in _IDLE | ({"opacity"} if child.get("opacity") == "1" else set()):
            child.attrib.pop(name, None)


def _number_ids(root: ElementTree.Element, prefix: str) -> None:
    """Rename the ids, and what refers to them, by their order in the drawing."""
    ids = dict.fromkeys(value for element in root.iter() if (value := element.get("id")))
    names = {old: f"{prefix}-{number}" for number, old in enumerate(ids)}
    for element in root.iter():
        for name, value in list(element.items()):
            if name == "id":
                element.set(name, names[value])
            elif match := re.fullmatch(r"url\(#(.+)\)", value):
                element.set(name, f"url(#{names[match[1]]})")
