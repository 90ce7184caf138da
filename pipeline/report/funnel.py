"""The funnel: every way for a pair to fall out, in order, and how many are left after it."""

from dataclasses import dataclass
from typing import Any

import duckdb

from pipeline.rules import RULES
from pipeline.summary import REPEATED

CAUSES = {
    "bad_url": "the url is malformed",
    "scheme": "the url's scheme is not allowed",
    "private_host": "the url leads into a private network",
    "dns": "the host's name is unknown",
    "connect": "the host could not be reached",
    "tls": "no trustworthy connection to the host",
    "timeout": "the server did not answer in time",
    "host_down": "the host was given up: it failed time after time, or asked to be left alone",
    "opted_out": "the owner does not want the image to be used",
    "encoded": "the answer came compressed, although that was not asked for",
    "redirects": "the server sent the request on too often",
    "interrupted": "the answer broke off",
    "max_bytes": "the file is larger than allowed",
    "max_pixels": "the image has more pixels than allowed",
    "max_scans": "the JPEG is made of more scans than any program writes",
    "not_image": "the answer is no image",
    "undecodable": "the image cannot be decoded",
    "bad_boxes": "the boxes to blur cannot be read",
    "unexpected": "the fetch failed in a way that is not foreseen",
}
"""What the causes of a failed download mean."""


@dataclass(frozen=True)
class Step:
    """One line of the funnel: `dropped` pairs met it first, `failing` fail it at all (None where that is not asked)."""

    stage: str
    rule: str
    dropped: int
    left: int
    pairs_in: int
    failing: int | None = None
    condition: str = ""
    meaning: str = ""
    source: str = ""

    @property
    def dropped_percent(self) -> float:
        return 100 * self.dropped / max(self.pairs_in, 1)

    @property
    def left_percent(self) -> float:
        return 100 * self.left / max(self.pairs_in, 1)


def steps(summary: dict[str, Any], connection: duckdb.DuckDBPyConnection) -> list[Step]:
    """The drops of `summary` in the order in which they are counted, each with what its rule says."""
    pairs_in = left = summary["pairs_in"]
    made = []

    def add(stage: str, rule: str, dropped: int, **more: Any) -> None:
        nonlocal left
        left -= dropped
        made.append(Step(stage, rule, dropped, left, pairs_in, **more))

    add("ingest", "quarantined", summary["quarantined"], meaning="the row could not be read")
    add("ingest", REPEATED, summary["dropped"][REPEATED], meaning="the lists hold an equal (url, text) pair")
    rows = connection.execute("SELECT stage, rule, setting, failing FROM funnel ORDER BY position").fetchall()
    for stage, name, setting, failing in rows:
        counted = summary["failed"] if stage == "download" else summary["dropped"]
        more: dict[str, Any] = {"failing": failing}
        if name in RULES and stage != "download":
            rule = RULES[name]
            more |= {"condition": f"{rule.condition} {setting}".strip()}
            more |= {"meaning": rule.meaning, "source": rule.source}
        elif stage in ("screen", "filter"):
            more |= {"condition": f"not ({setting})", "meaning": "the recipe's own rule", "source": "the recipe"}
        else:
            answered = f"the server answered with status {name[5:]}" if name.startswith("http_") else "no image came"
            more |= {"meaning": CAUSES.get(name, answered)}
        add(stage, name, counted[name], **more)
    return made
