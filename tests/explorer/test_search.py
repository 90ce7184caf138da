"""Search: the nearest of each space against numpy, whose text encoder it is, and the page in a browser."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import explored
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_dataset import Image, jpeg, made_dataset, run_filter
from playwright.sync_api import Browser, expect
from watching import watch

sys.path.append(str(Path(__file__).parents[1] / "signals"))
from tiny_clip import write_tiny_clip

from pipeline import extract
from pipeline.catalog import refresh
from pipeline.engine import InlineEngine, engine
from pipeline.errors import PairmillError
from pipeline.explorer.search import PLACE, Space, by_picture, by_vector, checked, spaces, without
from pipeline.job import Job
from pipeline.recipe import Recipe, load
from pipeline.signals.extracted import texts_table
from pipeline.store.dataset import Dataset
from trainers import embed, train
from trainers.tasks.encoding import RunEncoder

MODEL = {
    "features": "region",
    "steps": 4,
    "text": {"vocabulary": 200, "max_tokens": 20},
    "vision": {"kind": "region", "standardize": True},
    "encoder": {
        "hidden": 16,
        "heads": 2,
        "feedforward": 24,
        "initializer": 0.2,
        "blocks": [{"repeat": 2, "attention": [["text-text", "vision-vision"]], "weights": "separate"}],
    },
    "objectives": {"itc": {"width": 8}},
    "batch": {"size": 8},
    "optimizer": {"learning_rate": 1e-3},
    "validations": 0,
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with a dual encoder's embeddings; its recipe lies beside it."""
    recipe = explored.make(tmp_path_factory.mktemp("searched"))
    dataset = Dataset(recipe.parent / "data")
    settings = Recipe.model_validate(load(recipe).model_dump(exclude_none=True) | {"train": {"look": MODEL}})
    with closing(engine("local", 1)) as running:
        train.run(Job("train", settings, dataset, running))
        embed.run(Job("embed", settings, dataset, running))
    refresh(dataset)
    return dataset


def asked(dataset: Dataset, query: str, *parameters: Any) -> list[dict[str, Any]]:
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        found = connection.execute(query, parameters)
        names = [name for name, *_ in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def nearest(dataset: Dataset, vector: np.ndarray, number: int) -> list[str]:
    """Keys of the pictures with the greatest cosine, by numpy over the run's own file."""
    rows = [row for row in pq.read_table(dataset.embeddings()["look"]).to_pylist() if row["modality"] == "image"]
    vectors = np.array([row["embedding"] for row in rows], np.float64)
    cosines = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
    return [rows[place]["key"] for place in np.argsort(-cosines, kind="stable")[:number]]


def test_nearest_are_those_of_numpy(searched: Dataset) -> None:
    (space,) = [space for space in spaces(searched, None, None) if space.name == "run look"]
    assert space.encode is None
    rng = np.random.default_rng(0)
    for _ in range(20):
        vector = rng.normal(size=8)
        found = asked(searched, by_vector(space), vector.tolist(), 7)
        assert [row["key"] for row in found] == nearest(searched, vector.astype(np.float32), 7)
        assert all(row["uid"] and row["text"] for row in found)
    rows = [row for row in pq.read_table(searched.embeddings()["look"]).to_pylist() if row["modality"] == "image"]
    for row in rows[::9]:
        found = asked(searched, by_picture(space), row["key"], 5)
        assert [other["key"] for other in found] == nearest(searched, np.array(row["embedding"]), 5)
        assert found[0]["cosine"] == pytest.approx(1)
    assert asked(searched, by_picture(space), "nothing", 5) == []


def test_a_text_is_where_embed_puts_it(searched: Dataset) -> None:
    encoder = RunEncoder(searched)
    texts = [row for row in pq.read_table(searched.embeddings()["look"]).to_pylist() if row["modality"] == "text"]
    for row in texts[::17]:
        np.testing.assert_allclose(encoder("look", row["text"]), row["embedding"], atol=1e-5)
    with pytest.raises(PairmillError, match="make embed ONLY=other"):
        encoder("other", "words")


def test_pictures_that_another_model_embedded_are_not_searched_by_words(searched: Dataset) -> None:
    path = searched.embeddings()["look"]
    stamp = path.with_name(path.name + ".key.json")
    before, state = stamp.read_text(), path.stat()
    stamp.write_text('{"key": "of another model", "seconds": 1}')
    try:
        with pytest.raises(PairmillError, match="make embed ONLY=look"):
            RunEncoder(searched)("look", "words")
    finally:
        stamp.write_text(before)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(PairmillError, match="9 dimensions"):
        checked([0.0] * 9, Space("run look", "", 8, None))


def test_what_has_no_embeddings_is_named_with_the_remedy(searched: Dataset, tmp_path: Path) -> None:
    (tmp_path / "runs" / "look").mkdir(parents=True)
    manifest = searched.run("look").folder / "manifest.json"
    (tmp_path / "runs" / "look" / "manifest.json").write_text(manifest.read_text())
    recipe = Recipe.model_validate({"name": "t", "train": {"look": MODEL}})
    assert without(Dataset(tmp_path), recipe) == ["the run look has no embeddings: make embed ONLY=look"]
    assert without(searched, recipe) == []


def test_a_uid_and_the_key_of_a_copy_lead_to_the_picture(searched: Dataset) -> None:
    kept = asked(searched, "SELECT uid, key FROM kept ORDER BY uid LIMIT 5")
    for row in kept:
        for like in (row["uid"], row["key"]):
            assert asked(searched, PLACE, like) == [{"key": row["key"]}]
    dropped = asked(
        searched, "SELECT uid, key FROM drops JOIN pairs USING (uid) JOIN images USING (url) WHERE images.status = 'ok'"
    )
    for row in dropped[:4]:
        assert asked(searched, PLACE, row["uid"]) == [{"key": row["key"]}]
    assert asked(searched, PLACE, "' OR true --") == []


def test_clips_own_space_is_searched_by_its_own_words_alone(tmp_path: Path) -> None:
    clip = write_tiny_clip(tmp_path / "clip")
    rng = np.random.default_rng(1)
    urls = [f"http://a/{number}" for number in range(6)]
    images = [Image(url, jpeg(rng.integers(0, 255, (40, 40, 3), np.uint8))) for url in urls]
    texts = ["a dog", "two cats", "the sea", "a house", "some trees", "a bicycle"]
    dataset = made_dataset(tmp_path / "data", list(zip(urls, texts, strict=True)), [images[:3], images[3:]])
    run_filter(dataset, {"min_clip_score": -1.0}, clip=clip)
    refresh(dataset)
    recipe = Recipe.model_validate({"name": "t", "filter": {"clip": clip}})
    (space,) = spaces(dataset, recipe, None)
    assert space.encode is not None
    scores = {
        (row["uid"], row["key"]): row["clip_score"]
        for row in asked(dataset, f"SELECT * FROM kept JOIN '{dataset.root}/signals/clip_score/*.parquet' USING (uid)")
    }
    for (uid, key), score in scores.items():
        (text,) = asked(dataset, "SELECT text FROM pairs WHERE uid = ?", uid)
        found = asked(dataset, by_vector(space), space.encode(text["text"]), 6)
        assert {row["key"]: row["cosine"] for row in found}[key] == pytest.approx(score, abs=1e-5)
        assert [row["cosine"] for row in found] == sorted((row["cosine"] for row in found), reverse=True)
    other = Recipe.model_validate(
        {"name": "t", "filter": {"clip": write_tiny_clip(tmp_path / "other", 1) | {"model": clip["model"]}}}
    )
    for unfit in (other, Recipe(name="t"), None):
        (space,) = spaces(dataset, unfit, None)
        assert space.encode is None
        assert "another CLIP" in space.note


def test_a_patch_extractors_space_is_searched_by_its_own_words_alone(tmp_path: Path) -> None:
    clip = write_tiny_clip(tmp_path / "clip")
    rng = np.random.default_rng(2)
    urls = [f"http://a/{number}" for number in range(5)]
    images = [Image(url, jpeg(rng.integers(0, 255, (40, 40, 3), np.uint8))) for url in urls]
    dataset = made_dataset(tmp_path / "data", [(url, f"some words {url}") for url in urls], [images])
    run_filter(dataset, {"min_side": 1})

    def recipe(weights: object) -> Recipe:
        return Recipe.model_validate(
            {"name": "t", "extract": {"vit": {"kind": "patch", "model": clip["model"], "weights": weights}}}
        )

    own = recipe(clip["pretrained"])
    extract.run(Job("extract", own, dataset, InlineEngine()))
    refresh(dataset)
    (space,) = spaces(dataset, own, None)
    assert space.encode is not None
    for path in texts_table(dataset.features("vit")).paths(".parquet"):
        for row in pq.read_table(path).to_pylist():
            (pair,) = asked(dataset, "SELECT text, key FROM kept WHERE uid = ?", row["uid"])
            np.testing.assert_allclose(space.encode(pair["text"]), row["embedding"], atol=1e-5)
            found = asked(dataset, by_vector(space), row["embedding"], 5)
            assert {other["key"] for other in found} == {f"00000{number:04d}" for number in range(5)}
            assert asked(dataset, by_picture(space), pair["key"], 1)[0]["key"] == pair["key"]
    foreign = recipe(write_tiny_clip(tmp_path / "other", 1)["pretrained"])
    for unfit in (foreign, None):
        (space,) = spaces(dataset, unfit, None)
        assert space.encode is None
        assert space.note


@pytest.fixture(scope="module")
def address(searched: Dataset) -> Iterator[str]:
    with explored.serving(searched.root, searched.root.parent / "explored.toml") as served:
        yield served


def test_words_and_pictures_find_pictures_in_the_browser(searched: Dataset, browser: Browser, address: str) -> None:
    context = browser.new_context(base_url=address)
    page = context.new_page()
    seen = watch(page, address)
    page.goto("/search")
    page.get_by_label("words").fill(explored.SCRIPT)
    page.keyboard.press("Enter")
    items = page.locator(".explorer-item")
    expect(items.first).to_be_visible(timeout=30_000)

    def keys() -> list[str]:
        sources = [image.get_attribute("src") or "" for image in page.locator(".explorer-item img").all()]
        return [source.removeprefix("/picture/").split("?")[0] for source in sources]

    vector = np.array(RunEncoder(searched)("look", explored.SCRIPT))
    assert keys()[:10] == nearest(searched, vector, 10)
    expect(items.get_by_text("cosine").first).to_be_visible()
    for caption in (explored.SCRIPT, explored.BREAKOUT):
        assert items.get_by_text(caption, exact=True).count() <= 1
    page.reload()
    expect(items.first).to_be_visible()
    found = keys()
    items.nth(3).click()
    page.get_by_role("link", name="Find similar").click()
    expect(page).to_have_url(f"{address}/search?like={found[3]}&space=run+look")
    expect(items.first).to_be_visible()
    assert keys()[0] == found[3]
    page.get_by_label("or like").fill("nothing")
    page.get_by_role("button", name="Find similar").click()
    expect(page.get_by_role("alert")).to_contain_text("there is no picture")
    context.close()
    assert (seen.foreign, seen.console, seen.dialogs) == ([], [], [])
