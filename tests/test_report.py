"""The report over a tiny dataset that the real stages made; the download alone is stood in for."""

import io
import json
import re
import tarfile
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import filter as filter_stage
from pipeline import ingest, report, screen, summary
from pipeline.engine import engine
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.report.curves import smoothed
from pipeline.report.page import shown
from pipeline.report.toml import toml
from pipeline.store.atomic import file_sha256
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, ImageFeatures, write_features
from pipeline.store.table import Shard

SCRIPT = "<script>alert(1)</script> three words"
BREAKOUT = '"><img src=x onerror=alert(2)> out it breaks'
HOSTILE_URL = "javascript:alert(3)//picture"


def _pairs() -> list[tuple[str, str]]:
    pairs = [(f"http://web.example/{n}.png", f"picture number {n} of many") for n in range(20)]
    pairs += [("http://web.example/a.png", SCRIPT), ("http://web.example/b.png", BREAKOUT)]
    pairs += [("http://web.example/2.png", "one"), ("http://web.example/3.png", "<b>bold"), pairs[0]]
    return [*pairs, (HOSTILE_URL, "a link that should not be one")]


def _recipe(lists: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "ingest": {"inputs": [str(lists)]},
            "screen": {"rules": {"min_words": 3}},
            "filter": {"rules": {"min_side": 32}},
            "split": {"train": 0.4, "validation": 0.3, "test": 0.3},
        }
    )


def _job(dataset: Dataset, recipe: Recipe, stage: str = "report") -> Job:
    return Job(stage, recipe, dataset, engine("local", 1))


def _add_images(dataset: Dataset) -> None:
    """What `download` leaves: every second image small enough to be dropped, the last url failed."""
    urls = sorted({url for url, _ in _pairs()} - {HOSTILE_URL})
    rows: list[dict[str, Any]] = []
    with dataset.images.writing("key", {"00000": "key"}) as writing:
        with tarfile.open(dataset.images.folder / "00000.tar", "w") as tar:
            for number, url in enumerate(urls):
                side = 24 if number % 4 == 0 else 64
                content = io.BytesIO()
                Image.new("RGB", (side, side), (number * 10, 80, 120)).save(content, "JPEG")
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(content.getvalue())
                tar.addfile(member, io.BytesIO(content.getvalue()))
                sha256 = f"{number * 0x0C000000:08x}" + "0" * 56
                size = dict.fromkeys(("width", "height", "original_width", "original_height"), side)
                found = {"key": f"{number:08d}", "url": url, "status": "ok", "http_status": 200, "sha256": sha256}
                rows.append(found | size)
        failed = {"key": "00000099", "url": HOSTILE_URL, "status": "bad_url", "http_status": None, "sha256": None}
        rows.append(failed | dict.fromkeys(("width", "height", "original_width", "original_height")))
        pq.write_table(pa.Table.from_pylist(rows), dataset.images.folder / "00000.parquet")
        counts = {"requested": len(rows), "ok": len(urls), "failed/bad_url": 1}
        files = ["00000.tar", "00000.parquet"]
        writing.add(Shard.of(dataset.images.folder, "00000", "key", files, counts))
        writing.commit()


def _add_features(dataset: Dataset) -> list[str]:
    columns = {
        "boxes": Column("float32", (4,)),
        "classes": Column("int32"),
        "confidences": Column("float32"),
        "features": Column("float16", (8,), tensor=True),
    }
    with dataset.connect() as connection:
        keys = [key for (key,) in connection.execute("SELECT DISTINCT key FROM kept ORDER BY key").fetchall()]
    arrays = {
        "boxes": np.array([[0, 0, 1, 1], [0.1, 0.1, 0.5, 0.6]], "float32"),
        "classes": np.array([-1, 0], "int32"),
        "confidences": np.array([1, 0.7], "float32"),
        "features": np.zeros((2, 8), "float16"),
    }
    identity = {
        "kind": "region",
        "model": "detector.yaml",
        "weights": "untrained",
        "weights_sha256": "untrained",
        "trained": False,
        "classes": ["<i>cat</i>"],
        "settings": {"confidence": 0.2, "min_boxes": 2, "max_boxes": 2},
        "columns": {
            name: {"dtype": column.dtype, "shape": list(column.shape), "tensor": column.tensor}
            for name, column in columns.items()
        },
    }
    table = dataset.features("region")
    with table.writing("key", {"00000": "key"}) as writing:
        images = [ImageFeatures(key, 2, arrays) for key in keys]
        rows = write_features(table.folder / "00000.parquet", images, columns, identity)
        writing.add(Shard.of(table.folder, "00000", "key", ["00000.parquet"], {"rows": rows}))
        writing.commit({"identity": identity})
    return keys


def _add_run(dataset: Dataset, keys: list[str]) -> None:
    table = dataset.run("clip")
    with table.writing("key", {"model": "key"}) as writing:
        metrics = {"step": list(range(50)), "name": ["loss/itc"] * 50, "value": [3 - step / 25 for step in range(50)]}
        pq.write_table(pa.table(metrics), table.folder / "metrics.parquet")
        writing.add(Shard.of(table.folder, "model", "key", ["metrics.parquet"], {}))
        writing.commit({"loss_first": 2.75, "loss_last": 1.25, "steps": 50, "parameters": 1_500_000})
    recalls = {f"{way}_r{cut}": cut / 20 for way in ("t2i", "i2t") for cut in (1, 5, 10)}
    chances = {"chance_t2i_r10": 0.1, "chance_i2t_r10": 0.125, "chance_r10": 0.11}
    evaluation = {
        "key": "key",
        "retrieval": recalls | chances | {"texts": 9, "images": 8},
        "examples": [
            {"text": SCRIPT, "top": keys[:5], "right": [keys[1]]},
            {"text": "gone", "top": ["none"], "right": []},
        ],
        "seconds": 1.0,
    }
    (table.folder / "evaluation.json").write_text(json.dumps(evaluation))


class _References(HTMLParser):
    """All tags and whatever could reach out or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Recipe]:
    """A dataset on which every stage has run."""
    folder = tmp_path_factory.mktemp("report")
    lists = folder / "list.parquet"
    urls, texts = zip(*_pairs(), strict=True)
    pq.write_table(pa.table({"url": urls, "text": texts}), lists)
    dataset, recipe = Dataset(folder / "data"), _recipe(lists)
    ingest.run(_job(dataset, recipe, "ingest"))
    screen.run(_job(dataset, recipe, "screen"))
    _add_images(dataset)
    filter_stage.run(_job(dataset, recipe, "filter"))
    _add_run(dataset, _add_features(dataset))
    return dataset, recipe


@pytest.fixture(scope="module")
def html(made: tuple[Dataset, Recipe]) -> str:
    dataset, recipe = made
    report.run(_job(dataset, recipe))
    return (dataset.root / "report" / "index.html").read_text()


def test_every_section_is_there(html: str) -> None:
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections == ["funnel", "kept", "dropped", "failed", "features", "training", "retrieval", "seconds", "recipe"]


def test_numbers_are_those_of_the_summary(made: tuple[Dataset, Recipe], html: str) -> None:
    numbers = summary.collect(made[0])
    text = _References(html).text
    assert numbers["kept"]
    assert numbers["dropped"] == {"repeated_pair": 1, "min_words": 2, "min_side": numbers["dropped"]["min_side"]}
    assert summary.is_balanced(numbers)
    assert f"{numbers['kept']} of {numbers['pairs_in']} pairs kept, {numbers['images_kept']} images" in text
    assert "It adds up:" in text
    shown_drops = dict(re.findall(r'<span class="rule">(\w+)</span>.*?dropped here">\u2212?(\d+)<', html, re.S))
    expected = {"quarantined": numbers["quarantined"]} | numbers["dropped"] | numbers["failed"]
    assert {rule: int(n) for rule, n in shown_drops.items()} == expected


def test_numbers_that_do_not_add_up_raise_an_alarm(
    made: tuple[Dataset, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, recipe = made
    honest = summary.collect(dataset)
    monkeypatch.setattr(summary, "collect", lambda _: honest | {"kept": honest["kept"] + 1})
    with dataset.connect() as connection:
        numbers = summary.collect(dataset)
        html = report.page.render(**report._contents(dataset, recipe, numbers, {}, connection))
    assert "do not add up" in html
    assert "It adds up" not in html


def test_hostile_texts_are_text(html: str) -> None:
    found = _References(html)
    assert "script" not in found.tags
    assert not found.handlers
    for hostile in (SCRIPT, BREAKOUT, "<b>bold", HOSTILE_URL, "<i>cat</i>"):
        assert hostile in found.text


def test_nothing_is_fetched(html: str) -> None:
    found = _References(html)
    assert found.references
    assert all(reference.startswith(("data:image/jpeg;base64,", "#")) for reference in found.references)
    assert "link" not in found.tags
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_an_untrained_detector_is_loud(html: str) -> None:
    assert html.count('role="alert"') == 2  # at the top and at its boxes
    assert "UNTRAINED" in html


def test_same_dataset_gives_the_same_page(made: tuple[Dataset, Recipe], html: str) -> None:
    dataset, recipe = made
    path = dataset.root / "report" / "index.html"
    assert report.run(_job(dataset, recipe)) == UP_TO_DATE
    before = file_sha256(path)
    path.unlink()
    report.run(_job(dataset, recipe))
    assert file_sha256(path) == before


def test_another_evaluation_makes_another_page(made: tuple[Dataset, Recipe], html: str) -> None:
    dataset, recipe = made
    path = dataset.run("clip").folder / "evaluation.json"
    old = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(old) | {"examples": []}))
        assert report.run(_job(dataset, recipe)) != UP_TO_DATE
    finally:
        path.write_text(old)


def test_stages_that_have_not_run_leave_their_sections_out(tmp_path: Path) -> None:
    lists = tmp_path / "list.csv"
    lists.write_text("url,text\nhttp://web.example/1,three short words\nhttp://web.example/2,one\n")
    dataset, recipe = Dataset(tmp_path / "data"), _recipe(lists)
    ingest.run(_job(dataset, recipe, "ingest"))
    report.run(_job(dataset, recipe))
    html = (dataset.root / "report" / "index.html").read_text()
    assert re.findall(r'<section id="(\w+)"', html) == ["funnel", "kept", "seconds", "recipe"]
    screen.run(_job(dataset, recipe, "screen"))
    report.run(_job(dataset, recipe))
    html = (dataset.root / "report" / "index.html").read_text()
    assert re.findall(r'<section id="(\w+)"', html) == ["funnel", "kept", "dropped", "seconds", "recipe"]


def test_recipe_reads_back_as_the_same_values() -> None:
    values = {
        "name": 'quote " and \\ and \n',
        "ratio": 0.5,
        "on": True,
        "empty": [],
        "rows": [{"repeat": 2, "attention": [["text-text"], ["vision-vision"]]}] * 3,
        "odd key": {"inner": {"deep": 1}, "value": "ü"},
        "nothing": {},
    }
    assert tomllib.loads(toml(values)) == values


def test_control_characters_are_made_visible_and_long_texts_cut() -> None:
    assert shown("a\x00b\u202ec\ud800d") == "a\ufffdb\ufffdc\ufffdd"
    assert len(shown("x" * 1000)) == 300


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert np.allclose(smoothed(np.full(200, 3.0)), 3.0)
    assert len(smoothed(np.arange(7.0))) == 7
