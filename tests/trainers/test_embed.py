"""Stage embed: what stands in the file is the model's own, SQL ranks by it as retrieval does, and it is exported."""

import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from made_dataset import write_screened
from synthetic import make_dataset, model_recipe
from test_export_open_clip import clip_recipe

from pipeline import catalog
from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.sql_shell import Format, ask
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers import embed, train
from trainers.data.loader import text_input
from trainers.data.text import encode
from trainers.export_open_clip import export
from trainers.loop.device import best_device
from trainers.saved import load_run
from trainers.tasks.scoring import Scorer

WIDTH = 8
RUNS = {
    "dual-1": clip_recipe(),
    # Through the whole stack, each modality without the other: another place in the model.
    "end": model_recipe("grid", objectives={"itc": {"width": 6, "at": "end"}}),
    "hinge": model_recipe("region", objectives={"vse": {"width": 6, "at": "end"}}),
    "words": model_recipe("grid", objectives={"mlm": {}}),
}


def job(dataset: Dataset, stage: str, *only: str) -> Job:
    recipe = Recipe.model_validate({"name": "t", "train": RUNS})
    return Job(stage, recipe, dataset, engine("local", 1), frozenset(only))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = make_dataset(tmp_path_factory.mktemp("embed"), images=60)
    write_screened(dataset, {"only": pq.read_table(dataset.pairs.folder / "only.parquet")["uid"].to_pylist()})
    train.run(job(dataset, "train", "dual-1", "end", "hinge"))
    embed.run(job(dataset, "embed", "dual-1", "end", "hinge"))
    return dataset


def rows(dataset: Dataset, run: str, modality: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(dataset.embeddings()[run]).to_pylist() if row["modality"] == modality]


@pytest.mark.parametrize("run", ["dual-1", "end", "hinge"])
def test_the_dot_products_are_what_retrieval_ranks_by(embedded: Dataset, run: str) -> None:
    store = FeatureStore(embedded.features(RUNS[run].features))
    saved = load_run(embedded.run(run), store)
    texts, images = rows(embedded, run, "text")[::7], rows(embedded, run, "image")[::5]
    tokens = encode(saved.tokenizer, [row["text"] for row in texts], saved.recipe.text.max_tokens)
    expected = Scorer.of(saved, store, best_device()).scores(tokens, [row["key"] for row in images])
    vectors = [np.array([row["embedding"] for row in part], np.float32) for part in (texts, images)]
    assert np.allclose(vectors[0] @ vectors[1].T, expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1, atol=1e-5)


def test_every_kept_text_and_image_has_a_row(embedded: Dataset) -> None:
    with embedded.connect() as connection:
        pairs = connection.sql("SELECT uid, key, text, split FROM kept ORDER BY key, uid").fetchall()
    texts, images = rows(embedded, "end", "text"), rows(embedded, "end", "image")
    assert [(row["uid"], row["key"], row["text"], row["split"]) for row in texts] == pairs
    assert [row["key"] for row in images] == sorted({key for _, key, *_ in pairs})
    assert all(row["uid"] is None and row["split"] for row in images)


def test_sql_finds_the_nearest_image(embedded: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    nearest = """
        SELECT image.key, array_cosine_similarity(word.embedding, image.embedding) AS fits
        FROM embeddings_dual_1 AS word, embeddings_dual_1 AS image
        WHERE word.uid = '{}' AND image.modality = 'image' ORDER BY fits DESC LIMIT 1"""
    query = rows(embedded, "dual-1", "text")[3]
    images = rows(embedded, "dual-1", "image")
    fits = np.array([row["embedding"] for row in images]) @ np.array(query["embedding"])
    with embedded.connect() as connection:
        assert "embeddings_end" in {name for (name, *_) in connection.sql("SHOW TABLES").fetchall()}
        ((key, fit),) = connection.sql(nearest.format(query["uid"])).fetchall()
    assert (key, fit) == (images[int(fits.argmax())]["key"], pytest.approx(fits.max(), abs=1e-5))
    ask(embedded, nearest.format(query["uid"]), Format.TABLE)
    assert key in capsys.readouterr().out


def test_the_catalog_learns_of_new_embeddings(embedded: Dataset) -> None:
    catalog.refresh(embedded)
    assert catalog.refresh(embedded) is None
    (stamp := embedded.embeddings()["hinge"].with_name("embeddings.parquet.key.json")).unlink()
    assert stamp.name not in {path.name for path in embedded.run("hinge").folder.iterdir()}
    assert "hinge" in embed.run(job(embedded, "embed"))
    assert "embeddings_hinge" in (catalog.refresh(embedded) or [])


def test_what_is_up_to_date_stays_and_what_has_no_space_is_refused(embedded: Dataset) -> None:
    assert embed.run(job(embedded, "embed", "dual-1", "end", "hinge")) == UP_TO_DATE
    with pytest.raises(PairmillError, match="'words' has no joint space"):
        embed.run(job(embedded, "embed", "words"))


def test_damaged_embeddings_stop_no_one(embedded: Dataset, tmp_path: Path) -> None:
    path = embedded.embeddings()["hinge"]
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"PAR1" + whole[4:-8] + b"\xff\xff\xff\x7fPAR1"):
        path.write_bytes(damage)
        with embedded.connect() as connection:
            assert connection.sql("SELECT count(*) FROM kept").fetchall()
            with pytest.raises(duckdb.Error):
                connection.sql("SELECT count(*) FROM embeddings_hinge").fetchall()
        assert embed.run(job(embedded, "embed", "dual-1", "end", "hinge")).startswith("hinge: ")
        assert path.read_bytes() == whole


def test_a_trained_run_is_exported_with_its_tokenizer(embedded: Dataset, tmp_path: Path) -> None:
    """open_clip gives the texts that the run's own embeddings give; its pictures are tested beside the weights."""
    said = export(embedded, "dual-1", "pixel", tmp_path / "out")
    assert re.search("open_clip.create_model", said)
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    store = FeatureStore(embedded.features("pixel"))
    saved = load_run(embedded.run("dual-1"), store)
    texts = rows(embedded, "dual-1", "text")[:9]
    tokens = text_input(encode(saved.tokenizer, [row["text"] for row in texts], saved.recipe.text.max_tokens)).tokens
    padded = torch.nn.functional.pad(tokens, (0, saved.recipe.text.max_tokens - tokens.shape[1]))
    with torch.inference_mode():
        found = theirs.encode_text(padded, normalize=True).numpy()
    assert np.allclose(found, [row["embedding"] for row in texts], atol=1e-4)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    assert torch.equal(tokenizer([row["text"] for row in texts]), padded)
    with pytest.raises(PairmillError, match="not empty"):
        export(embedded, "dual-1", "pixel", tmp_path / "out")
    with pytest.raises(PairmillError, match="end: open_clip has no form for grid features"):
        export(embedded, "end", "grid", tmp_path / "other")
    assert not (tmp_path / "other").exists()
