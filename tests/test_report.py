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

from pipeline import evaluations, ingest, report, screen, summary
from pipeline import filter as filter_stage
from pipeline.engine import engine
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.report import distributions, samples
from pipeline.report.clusters import Member, clusters
from pipeline.report.curves import smoothed
from pipeline.report.pictures import Album
from pipeline.report.thresholds import BORDER, borders
from pipeline.report.toml import toml
from pipeline.report.wording import shown
from pipeline.store.atomic import file_sha256
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, ImageFeatures, write_features
from pipeline.store.pictures import Pictures
from pipeline.store.table import Shard
from pipeline.store.views.thresholds import VIEWS
from pipeline.web.image_shard import FETCHES, METADATA

SCRIPT = "<script>alert(1)</script> three words"
BREAKOUT = '"><img src=x onerror=alert(2)> out it breaks'
HOSTILE_URL = "javascript:alert(3)//picture"
ENDINGS = "]]> --> </style> </svg> </title> {{ 7 * 7 }} \u202eright to left\u2066"
HOSTILE_HOST = "http://<b>&amp;evil\"'.example/picture.png"
HOSTILE_CLASS = "<i>cat</i></svg><script>alert(5)</script>]]>\x00\ufffe"
LONG = "word" * 2500
SCREENED = ["funnel", "kept", "rules", "distributions", "words", "cost", "recipe"]
MODELLED = ["features", "training", "retrieval", "cost", "recipe"]
SIZES = ("width", "height", "original_width", "original_height")


def _pairs() -> list[tuple[str, str]]:
    pairs = [(f"http://web.example/{n}.png", f"picture number {n} of many") for n in range(20)]
    pairs += [("http://web.example/a.png", SCRIPT), ("http://web.example/b.png", BREAKOUT)]
    pairs += [("http://web.example/2.png", "one"), ("http://web.example/3.png", "<b>bold"), pairs[0]]
    pairs += [("http://web.example/4.png", f"{ENDINGS} {LONG}"), (HOSTILE_HOST, "a host that is none")]
    pairs += [("http://web.example/5.png", f"{ENDINGS} {LONG[:2000]}")]
    return [*pairs, (HOSTILE_URL, "a link that should not be one")]


def _recipe(lists: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "ingest": {"inputs": [str(lists)]},
            "screen": {"rules": {"min_words": 3, "max_characters": 500, "own": {"keep_if": "text <> '</script>'"}}},
            "filter": {"rules": {"min_side": 32, "max_aspect": 1.6, "near_duplicates": 2}},
            "split": {"train": 0.4, "validation": 0.3, "test": 0.3},
        }
    )


def _job(dataset: Dataset, recipe: Recipe, stage: str = "report") -> Job:
    return Job(stage, recipe, dataset, engine("local", 1))


def _add_images(dataset: Dataset) -> None:
    """What `download` leaves: every second image small enough to be dropped, the last url failed."""
    failed = [HOSTILE_HOST, HOSTILE_URL]
    urls = sorted({url for url, _ in _pairs()} - set(failed))
    rows: list[dict[str, Any]] = []
    with dataset.images.writing("key", {"00000": "key"}) as writing:
        with tarfile.open(dataset.images.folder / "00000.tar", "w") as tar:
            for number, url in enumerate(urls):
                size = [(24, 24), (96, 64), (90, 64), (90, 64), (24, 30), (150, 64), (99, 64), (64, 64)][number % 8]
                pixels = np.random.default_rng(number // 2).integers(0, 255, (8, 8, 3), np.uint8)
                content = io.BytesIO()
                Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(content, "JPEG")
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(content.getvalue())
                tar.addfile(member, io.BytesIO(content.getvalue()))
                found = {"key": f"{number:08d}", "url": url, "status": "ok", "http_status": 200, "format": "JPEG"}
                found |= {"sha256": f"{number * 0x0A000000:08x}" + "0" * 56, "bytes": member.size}
                rows.append(found | dict(zip(SIZES, (*size, *size), strict=True)))
        rows += [{"key": f"{99 - n:08d}", "url": url, "status": "bad_url"} for n, url in enumerate(failed)]
        pq.write_table(pa.Table.from_pylist(rows, METADATA), dataset.images.folder / "00000.parquet")
        counts = {"requested": len(rows), "ok": len(urls), "failed/bad_url": len(failed)}
        files = ["00000.tar", "00000.parquet"]
        writing.add(Shard.of(dataset.images.folder, "00000", "key", files, counts))
        writing.commit()
    fetches = dataset.root / "logs" / "fetches"
    fetches.mkdir(parents=True)
    fetched = [{"url": row["url"], "status": row["status"], "attempts": 2, "seconds": 0.5, "time": 1.0} for row in rows]
    pq.write_table(pa.Table.from_pylist(fetched, FETCHES), fetches / "00000.parquet")


def _add_features(dataset: Dataset, name: str, **differing: Any) -> list[str]:
    """`differing`: what its identity says otherwise."""
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
        "classes": [HOSTILE_CLASS],
        "settings": {"confidence": 0.2, "min_boxes": 2, "max_boxes": 2},
        "columns": {
            name: {"dtype": column.dtype, "shape": list(column.shape), "tensor": column.tensor}
            for name, column in columns.items()
        },
    }
    identity |= differing
    table = dataset.features(name)
    with table.writing("key", {"00000": "key"}) as writing:
        images = [ImageFeatures(key, 2, arrays) for key in keys]
        rows = write_features(table.folder / "00000.parquet", images, columns, identity)
        writing.add(Shard.of(table.folder, "00000", "key", ["00000.parquet"], {"rows": rows}))
        writing.commit({"identity": identity})
    return keys


def _add_run(dataset: Dataset, keys: list[str]) -> None:
    table = dataset.run("clip")
    with table.writing("key", {"model": "key"}) as writing:
        values = {
            "loss/itc": {step: 3 - step / 25 for step in range(50)},
            "validation/loss/itc": {9: 2.7, 49: float("nan"), 48: 1.5},
            "lr": {step: step / 50 for step in range(50)},
            "validation/t2i_r10": {9: 0.25, 49: 0.5},
        }
        scalars = [(step, name, value) for name, own in values.items() for step, value in own.items()]
        metrics = dict(zip(("step", "name", "value"), map(list, zip(*scalars, strict=True)), strict=True))
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
        "image_examples": [
            {"image": keys[0], "top": [BREAKOUT, SCRIPT, ENDINGS, LONG, "five"], "right": ["five", SCRIPT]},
            {"image": "none", "top": ["a", "b"], "right": [f"right {number}" for number in range(7)]},
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
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
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
    _add_features(dataset, "imported", trained=True, settings={"format": "uniter-npz", "top_k": 10})
    _add_run(dataset, _add_features(dataset, "region"))
    return dataset, recipe


@pytest.fixture(scope="module")
def html(made: tuple[Dataset, Recipe]) -> str:
    dataset, recipe = made
    report.run(_job(dataset, recipe))
    return (dataset.root / "report" / "index.html").read_text()


def test_every_section_is_there(html: str) -> None:
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections == [*["funnel", "kept", "rules", "failed", "distributions", "words", "duplicates"], *MODELLED]
    assert re.findall(r'<a href="#(\w+)"', html) == sections


def test_numbers_are_those_of_the_summary(made: tuple[Dataset, Recipe], html: str) -> None:
    numbers = summary.collect(made[0])
    text = _References(html).text
    assert numbers["kept"]
    assert numbers["quarantined"] == 1  # the text that is far too long
    assert {"repeated_pair": 1, "min_words": 2, "max_characters": 1}.items() <= numbers["dropped"].items()
    assert numbers["dropped"]["min_side"] > 2
    assert numbers["dropped"]["max_aspect"] > 1
    assert numbers["dropped"]["near_duplicates"] > 1
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
        html = report.page.render(**report.contents(dataset, recipe, numbers, {}, connection))
    assert "do not add up" in html
    assert "It adds up" not in html


def test_hostile_texts_are_text(html: str) -> None:
    found = _References(html)
    assert not {"script", "i>cat<", "iframe", "object", "embed", "base", "form"}.intersection(found.tags)
    assert found.tags.count("style") == 1
    assert not found.handlers
    for hostile in (
        SCRIPT,
        BREAKOUT,
        "<b>bold",
        HOSTILE_URL,
        HOSTILE_HOST,
        "<i>cat</i></svg><script>",
        "]]> --> </style>",
    ):
        assert hostile in found.text
    assert "49" not in found.text.split("]]> --> </style>")[1][:40]
    assert not re.search("[\0\u202e\u2066\ufffe]", html)
    assert LONG not in found.text
    assert LONG[:200] in found.text


def test_nothing_is_fetched(html: str) -> None:
    found = _References(html)
    assert found.references
    assert all(reference.startswith(("data:image/jpeg;base64,", "#")) for reference in found.references)
    assert {reference[1:] for reference in found.references if reference[0] == "#"} <= set(found.ids)
    assert not {"link", "foreignobject", "audio", "video"}.intersection(found.tags)
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
    assert re.findall(r'<section id="(\w+)"', html) == ["funnel", "kept", "distributions", "cost", "recipe"]
    screen.run(_job(dataset, recipe, "screen"))
    report.run(_job(dataset, recipe))
    html = (dataset.root / "report" / "index.html").read_text()
    assert re.findall(r'<section id="(\w+)"', html) == SCREENED


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


def test_pairs_on_the_border_are_on_their_sides(made: tuple[Dataset, Recipe]) -> None:
    dataset, recipe = made
    with dataset.connect() as connection:
        found = borders(connection, has_images=True)
        failed: dict[tuple[str, str], set[str]] = {}
        for uid, stage, rule in connection.execute("SELECT uid, stage, rule FROM verdicts").fetchall():
            failed.setdefault((stage, uid), set()).add(rule)
        measured = {stage: connection.execute(f"FROM {view}").fetchall() for stage, view in VIEWS.items()}
    assert list(found) == [
        *(("screen", rule) for rule in ("min_words", "max_characters")),
        *(("filter", rule) for rule in recipe.filter.rules),
    ]
    for (stage, rule), border in found.items():
        kept = {row[0] for row in measured[stage] if not failed.get((stage, row[0]))}
        alone = {row[0] for row in measured[stage] if failed.get((stage, row[0])) == {rule}}
        assert {sample.uid for sample in border.kept} <= kept
        assert {sample.uid for sample in border.dropped} <= alone
        if rule != "near_duplicates":  # which has no number for what is like nothing else
            assert len(border.kept) == min(BORDER, len(kept))
        assert len(border.dropped) == min(BORDER, len(alone))
        for side in (border.kept, border.dropped):
            threshold = float(getattr(recipe, stage).rules[rule])
            away = [abs(sample.value - threshold) for sample in side]
            assert away == sorted(away)
    assert any(border.dropped for (stage, _), border in found.items() if stage == "filter")


def test_bars_of_a_rule_count_what_it_drops(made: tuple[Dataset, Recipe], html: str) -> None:
    dataset, _ = made
    with dataset.connect() as connection:
        expected = dict(connection.execute("SELECT rule, failing FROM funnel WHERE stage = 'filter'").fetchall())
    said = dict(re.findall(r'aria-label="(\w+): what was measured".*?<span class="unseen">(.*?)</span>', html, re.S))
    below = {"min_side", "near_duplicates"}
    for rule in ("min_side", "max_aspect", "near_duplicates"):
        lower, higher = re.search(
            r"; ([\d,]+) (?:at or )?below the threshold \S+ and ([\d,]+) (?:at or )?above", said[rule]
        ).groups()
        assert int(lower if rule in below else higher) == expected[rule], rule


def test_clusters_are_those_of_the_signals(made: tuple[Dataset, Recipe]) -> None:
    dataset, _ = made
    rows = [
        row
        for path in dataset.signals("duplicates", "filter").paths(".parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    with dataset.connect() as connection:
        found = clusters(dataset, connection)
    assert found is not None
    assert found.fallen == len(rows)  # every picture of the fixture has a digest of its own
    assert found.clusters == len({row["duplicate_of"] for row in rows})
    for cluster in found.largest:
        own = [row for row in rows if row["duplicate_of"] == cluster.stays]
        assert cluster.size == len(own) + 1
        assert set(cluster.members) <= {Member(row["key"], row["duplicate_distance"]) for row in own}


def test_a_full_album_leaves_pictures_out(made: tuple[Dataset, Recipe]) -> None:
    pictures = Pictures(made[0].images)
    keys = [f"{number:08d}" for number in range(8)]
    whole = Album(pictures)
    sizes = [len(picture.uri) for key in keys if (picture := whole.get(key))]
    assert len(sizes) == len(keys)
    assert whole.left_out == 0
    room = sum(sizes[:3])
    album = Album(pictures, room)
    shown_pictures = [picture for key in keys if (picture := album.get(key))]
    assert sum(len(picture.uri) for picture in shown_pictures) <= room
    assert album.left_out == len(keys) - len(shown_pictures) > 0
    assert album.get("nothing") is None
    assert album.get(None) is None
    assert album.left_out == len(keys) - len(shown_pictures)


def test_pairs_that_screen_judged_are_shown_with_their_pictures(made: tuple[Dataset, Recipe], html: str) -> None:
    with made[0].connect() as connection:
        keys = dict(connection.execute("SELECT url, key FROM images WHERE status = 'ok'").fetchall())
        near = borders(connection, has_images=True)["screen", "min_words"]
        drawn = samples.dropped(connection, True, [("screen", "min_words"), ("filter", "min_side")])
    for sample in [*near.kept, *near.dropped, *drawn["screen", "min_words"]]:
        assert sample.key == keys.get(sample.url)
    assert any(sample.key for sample in near.kept)
    assert None not in {sample.key for sample in drawn["filter", "min_side"]}
    rule = html.split("screen-")[1].split("ruleblock")[0]
    there = [sample for sample in [*near.kept, *near.dropped] if sample.url not in (HOSTILE_URL, HOSTILE_HOST)]
    assert rule.count('class="thumbnail"') == len(there)


@pytest.mark.parametrize("broken", ['{"key": "key"}'])
def test_a_broken_evaluation_is_said(made: tuple[Dataset, Recipe], html: str, broken: str) -> None:
    dataset, recipe = made
    path = dataset.run("clip").folder / "evaluation.json"
    old = path.read_text()
    try:
        path.write_text(broken)
        assert report.run(_job(dataset, recipe)) != UP_TO_DATE
        said = (dataset.root / "report" / "index.html").read_text()
        path.unlink()  # which is no fault: it has not been evaluated
        assert report.run(_job(dataset, recipe)) != UP_TO_DATE
        unsaid = (dataset.root / "report" / "index.html").read_text()
    finally:
        path.write_text(old)
        report.run(_job(dataset, recipe))
    sentence = "runs/clip/evaluation.json cannot be read, so nothing is said of its retrieval: run make evaluate"
    assert f"{sentence}</p>" in said
    assert 'id="retrieval"' not in said
    assert "cannot be read, so" not in unsaid
    assert "cannot be read, so" not in html


@pytest.mark.parametrize(
    "broken",
    [
        b"\xff",
        b"[" * 100_000,
        b"7",
        b"null",
        b'{"key": "key", "seconds": 1.0}',
        b'{"retrieval": {}}',
        b'{"key": "key", "seconds": 1, "retrieval": {"t2i_r1": NaN}}',
    ],
    ids=["no text", "deep", "number", "null", "no retrieval", "no key", "no number"],
)
def test_a_broken_evaluation_leaves_the_run_out_of_the_summary(made: tuple[Dataset, Recipe], broken: bytes) -> None:
    dataset, _ = made
    path = dataset.run("clip").folder / "evaluation.json"
    old = path.read_bytes()
    whole = summary.collect(dataset)
    try:
        path.write_bytes(broken)
        numbers = summary.collect(dataset)
    finally:
        path.write_bytes(old)
    (warning,) = [text for text in numbers["warnings"] if text not in whole["warnings"]]
    assert "runs/clip/evaluation.json" in warning
    assert "make evaluate" in warning
    assert (numbers["retrieval"], "evaluate" in numbers["seconds"]) == ({}, False)
    assert (list(whole["retrieval"]), whole["seconds"]["evaluate"]) == (["clip"], 1.0)
    printed = summary.table(numbers)
    assert warning in printed
    assert "retrieval: clip" not in printed
    assert "retrieval: clip" in summary.table(whole)


def _retrieval_section(html: str) -> str:
    return html.split('<section id="retrieval">')[1].split("</section>")[0]


def test_pictures_are_queries_too(html: str) -> None:
    texts, pictures = _retrieval_section(html).split("The same pictures, side by side")
    assert texts.count('<div class="query">') == 2
    known, gone = pictures.split('<div class="query">')[1:]
    assert "cannot be read" not in known
    assert "cannot be read" in gone
    for query, right, more, answers, found in (
        (
            known,
            ["five", SCRIPT],
            None,
            [BREAKOUT, SCRIPT, "]]>", "wordword", "five"],
            [False, True, False, False, True],
        ),
        (gone, [f"right {number}" for number in range(5)], "and 2 more", ["a", "b"], [False, False]),
    ):
        asked, answered = query.split('<div class="answers">')
        items = re.findall(r"<li(.*?)>(.*?)</li>", asked, re.S)
        assert [_References(text).text for _, text in items] == [*right, *([more] if more else [])]
        assert [text for classes, text in items if "right" not in classes] == ([more] if more else [])
        assert '<span class="label">clip</span>' in answered
        items = re.findall(r"<li(.*?)>(.*?)</li>", answered, re.S)
        assert ["right" in classes for classes, _ in items] == found
        for (_, text), answer in zip(items, answers, strict=True):
            assert _References(text).tags == ["bdi"]
            assert _References(text).text.startswith(answer)
            assert len(_References(text).text) <= report.retrieval.LONGEST_TEXT


def test_a_picture_that_is_shown_twice_is_in_the_section_once(made: tuple[Dataset, Recipe], html: str) -> None:
    dataset, _ = made
    section = _retrieval_section(html)
    evaluation = json.loads((dataset.run("clip").folder / "evaluation.json").read_text())
    text, image = evaluation["examples"][0], evaluation["image_examples"][0]
    shown_keys = [*text["right"], *text["top"], image["image"]]
    stored = dict(re.findall(r'<image id="(\w+)" .*?href="(.*?)"/>', section))
    used = re.findall(r'aria-label="picture (\d+)"><use href="#(\w+)"/>', section)
    assert [key for key, _ in used] == shown_keys
    album = Album(Pictures(dataset.images))
    assert [stored[name] for _, name in used] == [album.small(key).uri for key in shown_keys]
    assert section.count("data:image/") == len(stored) == len(set(shown_keys)) < len(shown_keys)


def test_an_evaluation_of_before_pictures_were_queries(made: tuple[Dataset, Recipe]) -> None:
    dataset, recipe = made
    path = dataset.run("clip").folder / "evaluation.json"
    old = json.loads(path.read_text())
    del old["image_examples"]
    kept = path.read_text()
    try:
        path.write_text(json.dumps(old))
        with dataset.connect() as connection:
            numbers = summary.collect(dataset)
            found = evaluations.by_run(dataset)
            html = report.page.render(**report.contents(dataset, recipe, numbers, found, connection))
    finally:
        path.write_text(kept)
    section = _retrieval_section(html)
    assert "The same texts, side by side" in section
    assert "The same pictures" not in section
    assert "its retrieval" not in html


def test_stages_and_their_bytes_are_listed(made: tuple[Dataset, Recipe], html: str) -> None:
    dataset, _ = made
    cost = html[html.index('<section id="cost"') :]
    size = sum(file.bytes for shard in dataset.images.manifest.shards for file in shard.files)
    assert re.findall(r'<td><span class="rule">(\w+)</span></td>', cost) == [*summary.collect(dataset)["seconds"]][:-1]
    assert report.wording.size(size) in cost
    assert "what came of failed downloads is not counted" in cost


def test_equal_files_are_said_to_be_no_near_duplicates(html: str) -> None:
    section = html.split('<section id="duplicates">')[1].split("</section>")[0]
    assert "Files of the same bytes are one image here" in section


def test_bars_say_whose_rules_keep_a_pair(html: str) -> None:
    rules = html.split('<section id="rules">')[1].split("</section>")[0]
    for stage in ("screen", "filter"):
        assert f"kept by every rule of {stage}</title>" in rules
    assert "kept by every rule</title>" not in rules


def test_imported_regions_have_no_threshold(html: str) -> None:
    imported, own = html.split("Boxes of imported")[1].split("Boxes of region")
    assert "threshold" not in imported
    assert "pass the threshold of 0.2" in own.split("</section>")[0]


def test_languages_are_those_that_screen_measured(tmp_path: Path) -> None:
    texts = [
        "the quick brown fox jumps over the dog",
        "der schnelle braune Fuchs springt",
        "le renard brun saute",
        "123",
    ]
    lists = tmp_path / "list.parquet"
    rows = [(f"http://web.example/{number}.png", f"{texts[number % 4]} {number // 8}") for number in range(40)]
    pq.write_table(pa.table(dict(zip(("url", "text"), map(list, zip(*rows, strict=True)), strict=True))), lists)
    sections = {"ingest": {"inputs": [str(lists)], "shards": 3}, "screen": {"rules": {"languages": ["en"]}}}
    dataset, recipe = Dataset(tmp_path / "data"), Recipe.model_validate({"name": "tongues"} | sections)
    ingest.run(_job(dataset, recipe, "ingest"))
    screen.run(_job(dataset, recipe, "screen"))
    with dataset.connect() as connection:
        samples.look_up_kept(connection, has_images=False)
        drawn = {drawing.name: drawing for drawing in distributions.drawings(dataset, connection)}
        (kept,) = connection.execute("SELECT count(*) FROM kept").fetchone()
        dropped = connection.execute("SELECT detail, count(*) FROM drops GROUP BY detail").fetchall()
    said = set(drawn["Language of the text"].chart.alternative.split("; "))
    assert said == {
        f"en {kept}, of which {kept} kept",
        *(f"{name} {count}, of which 0 kept" for name, count in dropped),
    }
    assert len(said) > 2
    assert list(drawn) == ["Characters of the text", "Language of the text"]
