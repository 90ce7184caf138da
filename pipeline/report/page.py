"""The page out of its templates. Everything is escaped: texts, urls and class names come from outside."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report.retrieval import CUTS, LONGEST_TEXT, RUNS, SHOWN, WAYS
from pipeline.report.wording import count, percent, quantity, shown, size


def render(**contents: Any) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "quantity": quantity, "count": count, "percent": percent, "size": size}
    environment.globals |= {"CUTS": CUTS, "WAYS": WAYS, "RUNS": RUNS, "SHOWN": SHOWN, "LONGEST_TEXT": LONGEST_TEXT}
    return environment.get_template("page.html.j2").render(contents)
