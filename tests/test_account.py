"""Whatever the lists and the web hold, every row is accounted for: in = quarantined + dropped + failed + kept."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from corpus import encoded
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from web import Web, answer, misbehaving, says

from pipeline import download, filter, ingest, screen, summary
from pipeline.engine import InlineEngine
from pipeline.errors import PairmillError
from pipeline.job import Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset


def picture(seed: int, side: int) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (side, side + seed, 3), dtype=np.uint8), "PNG")


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with misbehaving() as web:
        for index in range(6):
            web.put(f"/{index}.png", says(answer("200 OK", picture(index, 30 + 30 * (index % 2)))))
        web.put("/copy.png", says(answer("200 OK", picture(0, 30))))
        web.put("/page.png", says(answer("200 OK", b"<html>" * 9, content_type="image/png")))
        web.put("/fat.png", says(answer("200 OK", picture(1, 400))))
        web.put("/away.png", says(answer("302 Found", location="file:///etc/passwd")))
        yield web


PATHS = [*(f"/{index}.png" for index in range(6)), "/copy.png", "/page.png", "/fat.png", "/away.png", "/absent.png"]
HOSTILE = ["", " ", "file:///etc/passwd", "http://", "http://[::1", "ftp://a/b", "data:,x", "http://a b/", "\x00"]
TEXTS = st.one_of(
    st.sampled_from(["a cat on a mat", "two dogs", "the same old text", "", "  ", "猫が座っている", "x" * 10_001]),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
)


@st.composite
def rows(draw: Any) -> list[dict[str, Any]]:
    urls = st.one_of(st.sampled_from(PATHS), st.sampled_from(PATHS), st.sampled_from(HOSTILE), st.text(max_size=12))
    row = st.fixed_dictionaries({"url": urls, "text": TEXTS, "score": st.one_of(st.none(), st.floats(0, 1))})
    broken = st.fixed_dictionaries({"broken": st.sampled_from(['{"url": "http://a', "\x00\x00", "[1, 2]", "nonsense"])})
    return draw(st.lists(st.one_of(row, row, row, broken), min_size=1, max_size=25))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(rows(), st.integers(1, 3), st.booleans())
def test_every_row_is_accounted_for(
    web: Web, tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], shards: int, own_rule: bool
) -> None:
    folder = tmp_path_factory.mktemp("account")
    lines = [
        row.get("broken") or json.dumps(row | {"url": web.url(row["url"]) if row["url"] in PATHS else row["url"]})
        for row in [*rows, {"url": PATHS[0], "text": "a cat on a mat", "score": 0.5}]
    ]
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    recipe = Recipe.model_validate(
        {
            "name": "account",
            "ingest": {"inputs": [str(folder / "list.jsonl")], "shards": shards},
            "screen": {
                "rules": {
                    **{"max_images_per_text": 3, "min_words": 2, "max_words": 9, "vocabulary": 25},
                    **({"sure": {"keep_if": "score > 0.3"}} if own_rule else {}),
                }
            },
            "download": {"images_per_shard": 4, "allow_hosts": ["127.0.0.1"], "retries": 0, "max_bytes": 200_000},
            "filter": {"rules": {"side_above": 40, "max_copies": 1, "near_duplicates": 2}},
        }
    )
    dataset, engine = Dataset(folder / "data"), InlineEngine()
    for stage in (ingest, screen, download, filter):
        try:
            stage.run(Job(stage.__name__.rpartition(".")[2], recipe, dataset, engine))
        except PairmillError as error:
            assume("could be had" not in str(error))  # not one picture: the download ends, and says so
            raise
    numbers = summary.collect(dataset)
    assert summary.is_balanced(numbers), numbers
    assert numbers["pairs_in"] == len(lines)
    with dataset.connect() as connection:
        (kept,) = connection.execute("SELECT count(*) FROM kept").fetchone() or (None,)
    assert kept == numbers["kept"]
