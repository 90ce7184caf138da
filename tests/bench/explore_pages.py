"""How long one waits in the explorer on a million pairs, in a real browser, and for the same by pandas and numpy.

`python -m tests.bench.explore_pages --pairs 1_000_000`. The server has started before; every round is a user who comes
for the first time, and so nothing is in the browser's cache. What the peers do is read, compute and no more: they have
no page and no pictures.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from playwright.sync_api import Browser, ElementHandle, Page

from pipeline.explorer.app import PAGES
from pipeline.store.dataset import EMBEDDINGS, Dataset
from pipeline.store.verdicts import KEPT, MEASURED
from tests.bench.explore_browser import browsing, change_after, painted, pictures_after, serving, visiting
from tests.bench.explore_dataset import SCREEN, Made, make
from tests.bench.explore_run import RUN, write_run
from tests.bench.table import Row, write
from tests.bench.text_rules import FOLDER, thousands

PAINT, QUERY, MOVE = 2.0, 1.0, 0.3
"""Seconds that were aimed at."""
RULE, ROUNDS = "max_words", 9
SHOWN = 48
ASKED = f"""SELECT kept.uid, kept.key, kept.text, original_width FROM kept JOIN images USING (key)
WHERE kept.text ILIKE '%tra%' AND original_width > 900 ORDER BY original_width DESC, kept.uid LIMIT {SHOWN}"""
WORDS = "a red house by the tree"


def paints(browser: Browser, address: str, rounds: int) -> dict[str, float]:
    """Each page's title -> median seconds to the first paint."""
    found: dict[str, list[float]] = {page.title: [] for page in PAGES}
    for _ in range(rounds):
        for one in PAGES:
            with visiting(browser, address) as page:
                found[one.title].append(painted(page, one.path))
    return {title: median(times) for title, times in found.items()}


def queries(browser: Browser, address: str, rounds: int) -> tuple[float, set[str]]:
    """Median seconds from the click on Run to the last picture that can be seen, and those pictures' keys."""
    times, keys = [], set[str]()
    for _ in range(rounds):
        with visiting(browser, address) as page:
            page.goto("/")
            page.wait_for_selector(".explorer-item")
            page.locator(".cm-content").click()
            page.keyboard.press("Control+a")
            page.keyboard.insert_text(ASKED)
            seconds, urls = pictures_after(page, _button(page, "Run"))
            times.append(seconds)
            keys |= {url.partition("/picture/")[2].partition("?")[0] for url in urls}
    return median(times), keys


def moves(browser: Browser, address: str, rounds: int) -> tuple[float, float]:
    """Seconds until a rule that nobody has looked at is open, and median seconds of a move of its slider."""
    with visiting(browser, address) as page:
        page.goto("/rules")
        rule = page.locator(".explorer-rule", has_text=RULE)
        rule.wait_for()
        started = time.perf_counter()
        rule.get_by_text(RULE, exact=True).click()
        kept = rule.get_by_text("pairs kept")
        kept.wait_for()
        opened = time.perf_counter() - started
        rule.locator(".q-slider [tabindex='0']").focus()
        label = kept.element_handle()
        keys = ("ArrowLeft", "ArrowRight")
        return opened, median(change_after(page, keys[turn % 2], label) for turn in range(2 * rounds))


def searches(browser: Browser, address: str, rounds: int) -> float:
    """Median seconds from the click on Search to the last picture that can be seen, once the model is loaded."""
    times = []
    for turn in range(rounds + 1):
        with visiting(browser, address) as page:
            page.goto("/search")
            page.get_by_label("words").fill(f"{WORDS} {turn}")
            times.append(pictures_after(page, _button(page, "Search"))[0])
    return median(times[1:])


def _button(page: Page, name: str) -> ElementHandle:
    return page.get_by_role("button", name=name, exact=True).element_handle()


def asked_of_pandas(dataset: Dataset) -> set[str]:
    """The keys of the pictures of `ASKED`."""
    kept = _read(dataset.filtered.paths(KEPT), ["uid", "key", "text"])
    images = _read(dataset.images.paths(".parquet"), ["key", "original_width"])
    found = kept[kept["text"].str.lower().str.contains("tra", regex=False)].merge(images, on="key")
    found = found[found["original_width"] > 900].sort_values(["original_width", "uid"], ascending=[False, True])
    return set(found["key"].head(SHOWN))


def counted_by_pandas(dataset: Dataset) -> int:
    """How many pairs another threshold of `RULE` would keep."""
    judged = _read(dataset.screened.paths(MEASURED), ["uid", "failures", RULE])
    passing = judged[(judged["failures"] == 0) & ~(judged[RULE] > SCREEN[RULE] - 1)]
    return len(passing.merge(_read(dataset.filtered.paths(KEPT), ["uid"]), on="uid"))


def searched_by_numpy(dataset: Dataset) -> np.ndarray:
    """The pictures nearest to a vector."""
    table = pq.read_table(dataset.run(RUN).folder / EMBEDDINGS, columns=["modality", "embedding"])
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    images = vectors[table["modality"].to_numpy() == "image"]
    return np.argsort(-(images @ images[0]))[:SHOWN]


def _read(paths: list[Path], columns: list[str]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path, columns=columns, dtype_backend="pyarrow") for path in paths])


def timed(rounds: int, run: Callable[[], Any]) -> tuple[float, Any]:
    """Median seconds, and what it gave."""
    times, found = [], None
    for _ in range(rounds):
        started = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - started)
    return median(times), found


def measure(made: Made, pairs: int, rounds: int) -> list[Row]:
    dataset, on = made.dataset, f"on {thousands(pairs)} pairs"
    rows: list[Row] = []

    def add(work: str, peer: str, seconds: float, target: float) -> None:
        rows.append(Row.of(f"{work} {on}", peer, seconds, "s", f"<= {target:g}"))
        print(f"  {seconds:7.3f} s  {work}; {peer}", file=sys.stderr, flush=True)

    with serving(dataset.root, made.recipe) as address, browsing() as browser:
        for title, seconds in paints(browser, address, rounds).items():
            add(f"first paint of the page {title}", "a wait that one accepts", seconds, PAINT)
        seconds, keys = queries(browser, address, rounds)
        peer, wanted = timed(rounds, lambda: asked_of_pandas(dataset))
        if not keys <= wanted:
            raise AssertionError(f"pictures that pandas does not find: {sorted(keys - wanted)}")
        add("a query, to the last picture", f"pandas, read_parquet and merge: {peer:.2f} s", seconds, QUERY)
        opened, moved = moves(browser, address, rounds)
        peer, _ = timed(rounds, lambda: counted_by_pandas(dataset))
        add(f"opening the rule {RULE}", "a wait that one accepts", opened, QUERY)
        add("a move of its slider, to the new count", f"pandas, read_parquet and merge: {peer:.2f} s", moved, MOVE)
        seconds = searches(browser, address, rounds)
        peer, _ = timed(rounds, lambda: searched_by_numpy(dataset))
        add("a search by words, to the last picture", f"numpy, read and multiply: {peer:.2f} s", seconds, QUERY)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    made = make(options.pairs, options.folder)
    write_run(made.dataset)
    write("explore_pages", measure(made, options.pairs, options.rounds))


if __name__ == "__main__":
    main()
