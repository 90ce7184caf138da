"""Groups of pictures that are one: against the signals and the metadata by hand, and the page in a browser."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
from made_dataset import Image, jpeg, made_dataset, run_filter, signal
from playwright.sync_api import Page, expect

from pipeline.catalog import refresh
from pipeline.explorer.duplicates import GROUPS, LOOKED_FOR, PICTURES
from pipeline.store.dataset import Dataset


def asked(dataset: Dataset, query: str, *parameters: Any) -> list[dict[str, Any]]:
    refresh(dataset)
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        found = connection.execute(query, parameters)
        names = [name for name, *_ in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def by_hand(dataset: Dataset, near: bool) -> list[set[str]]:
    """Groups of two and more keys: same bytes, and what fell to one that stays."""
    content = {
        row["key"]: row["sha256"]
        for path in dataset.images.paths(".parquet")
        for row in pq.read_table(path).to_pylist()
        if row["status"] == "ok"
    }
    stands_for = {row["key"]: content[row["duplicate_of"]] for row in signal(dataset, "duplicates")} if near else {}
    groups = defaultdict(set)
    for key, sha256 in content.items():
        groups[stands_for.get(key, sha256)].add(key)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), min(group)))


def pictures() -> list[bytes]:
    """Three of one content, two that look like it, a pair of copies, a pair that look alike, and three alone."""

    def noise(seed: int, lighter: int = 0) -> bytes:
        blocks = np.random.default_rng(seed).integers(0, 250, (8, 8, 3), np.uint8)
        return jpeg(np.kron(blocks, np.ones((12, 12, 1), np.uint8)) + np.uint8(lighter))

    same, alike = [noise(0)] * 3, [noise(0, 1), noise(0, 2)]
    return [*same, *alike, noise(1), noise(1), noise(2), noise(2, 1), noise(3), noise(4), noise(5)]


def test_groups_are_what_the_signals_say_with_and_without_near_ones(tmp_path: Path) -> None:
    urls = [f"http://a/{number}" for number in range(len(pictures()))]
    images = [Image(url, content, bytes=len(content)) for url, content in zip(urls, pictures(), strict=True)]
    images.append(Image("http://a/gone", status="http_404"))
    dataset = made_dataset(tmp_path / "data", [(url, "one two") for url in urls], [images[:4], images[4:]])
    run_filter(dataset, {"near_duplicates": 2})
    assert [len(group) for group in by_hand(dataset, True)] == [5, 2, 2]
    for near in (True, False):
        if not near:
            run_filter(dataset, {})
        expected = by_hand(dataset, near)
        assert asked(dataset, LOOKED_FOR) == [{"near": near}]
        groups = asked(dataset, GROUPS, 100, 0)
        found = {row["group"]: [row["group"]] for row in groups}
        distances = defaultdict(list)
        for row in asked(dataset, PICTURES, list(found)):
            found[row["group"]].append(row["key"])
            distances[row["group"]].append(row["distance"])
            assert row["distance"] == 0 or not row["same_bytes"]
        assert sorted(map(sorted, expected)) == sorted(map(sorted, found.values()))
        assert [row["pictures"] for row in groups] == [len(group) for group in expected]
        assert {row["groups"] for row in groups} == {len(expected)}
        assert {row["fell"] for row in groups} == {sum(map(len, expected)) - len(expected)}
        assert all(found == sorted(found) for found in distances.values())
        assert len(asked(dataset, GROUPS, 2, 1)) == min(2, len(expected) - 1)


def test_the_page_shows_strips_with_distances_and_texts(page: Page) -> None:
    page.goto("/duplicates")
    strip = page.locator(".explorer-strip").first
    expect(strip).to_contain_text("stays")
    image = strip.locator("img").first
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    assert strip.locator("img").count() >= 2
    page.get_by_text("Texts").first.click()
    expect(page.locator(".explorer-text").first).to_contain_text("picture number")
