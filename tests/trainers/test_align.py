"""Stage align: the scores are the dual encoder's own cosines, and `filter` judges by them."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from made_dataset import write_screened
from synthetic import FUSED, OWN, commit, make_dataset, model_recipe

from pipeline import filter
from pipeline.engine import engine
from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers import align, evaluate, train
from trainers.data.loader import VisionReader
from trainers.data.text import encode
from trainers.loop.device import best_device
from trainers.saved import load_run
from trainers.tasks.scoring import Scorer

BLOCKS = [{"repeat": 1, "attention": [OWN], "weights": "separate"}]
THEN_FUSED = [*BLOCKS, {"attention": [FUSED], "weights": "shared"}]
RUNS = {
    "dual": model_recipe("grid", blocks=BLOCKS, objectives={"itc": {}}),
    "single": model_recipe("grid", objectives={"itm": {}}),
    "both": model_recipe("grid", blocks=THEN_FUSED, objectives={"itc": {}, "itm": {"hard": True, "rerank": 2}}),
    "words": model_recipe("grid", objectives={"mlm": {}}),
}


def job(
    dataset: Dataset, stage: str, run: str | None = "dual", only: tuple[str, ...] = ("dual", "single"), **rules: Any
) -> Job:
    recipe = Recipe.model_validate({"name": "t", "train": RUNS, "filter": {"rules": rules, "alignment": run}})
    return Job(stage, recipe, dataset, engine("local", 1), frozenset(only))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = make_dataset(tmp_path_factory.mktemp("align"), images=60)
    write_screened(dataset, {"only": pq.read_table(dataset.pairs.folder / "only.parquet")["uid"].to_pylist()})
    train.run(job(dataset, "train", only=("dual", "single", "both")))
    return dataset


def scores(dataset: Dataset) -> dict[str, float]:
    (path,) = dataset.signals("alignment", "align").paths(".parquet")
    return {row["uid"]: row["alignment"] for row in pq.read_table(path).to_pylist()}


def test_what_is_scored_judged_and_up_to_date(trained: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PairmillError, match="make align"):
        filter.run(job(trained, "filter", min_alignment=0.0))
    monkeypatch.setattr(align, "BLOCK", 7)
    assert "90 pairs scored by dual" in align.run(job(trained, "align"))
    assert align.run(job(trained, "align")) == UP_TO_DATE
    store = FeatureStore(trained.features("grid"))
    saved = load_run(trained.run("dual"), store)
    scorer = Scorer(saved.model, VisionReader(store, saved.recipe.vision), best_device())
    with trained.connect() as connection:
        query = "SELECT uid, text, key FROM pairs JOIN images USING (url)"
        rows = connection.execute(query).fetchall()
    found = scores(trained)
    assert set(found) == {uid for uid, _, _ in rows}
    for uid, text, key in rows:
        alone = scorer.scores(encode(saved.tokenizer, [text], 20), [key])[0, 0]
        assert found[uid] == pytest.approx(alone, abs=1e-5)
        assert -1.001 <= alone <= 1.001
    threshold = sorted(found.values())[len(found) // 3]
    filter.run(job(trained, "filter", min_alignment=threshold))
    with trained.connect() as connection:
        fell = {uid for (uid,) in connection.execute("SELECT uid FROM verdicts").fetchall()}
    assert fell == {uid for uid, score in found.items() if score < threshold}
    assert len(fell) == len(found) // 3
    assert align.run(job(trained, "align")) == UP_TO_DATE


@pytest.mark.parametrize(("run", "said"), [(None, "no run"), ("nowhere", "'nowhere'"), ("words", "cannot score")])
def test_a_run_that_cannot_score_is_said_so(trained: Dataset, run: str | None, said: str) -> None:
    with pytest.raises(PairmillError, match=said):
        align.run(job(trained, "align", run))


def test_a_run_without_a_joint_space_gives_the_probability_of_a_match(trained: Dataset) -> None:
    assert "90 pairs scored by single" in align.run(job(trained, "align", "single"))
    store = FeatureStore(trained.features("grid"))
    saved = load_run(trained.run("single"), store)
    scorer = Scorer.of(saved, store, best_device())
    with trained.connect() as connection:
        rows = connection.execute("SELECT uid, text, key FROM pairs JOIN images USING (url)").fetchall()
    found = scores(trained)
    for uid, text, key in rows[::9]:
        odds = scorer.scores(encode(saved.tokenizer, [text], 20), [key])[0, 0]
        assert found[uid] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)


def test_a_run_that_cannot_rank_is_passed_over_and_refused_by_name(trained: Dataset) -> None:
    done = evaluate.run(job(trained, "evaluate", only=()))
    assert [part.split(":")[0] for part in done.split("; ")] == ["dual", "single", "both"]
    told = {name: json.loads((trained.run(name).folder / "evaluation.json").read_text()) for name in ("dual", "both")}
    assert "retrieval_by_cosine" not in told["dual"]
    assert told["both"]["retrieval_by_cosine"].keys() == told["both"]["retrieval"].keys()
    assert told["both"]["retrieval_by_cosine"] != told["both"]["retrieval"]
    with pytest.raises(PairmillError, match="'words' cannot rank"):
        evaluate.run(job(trained, "evaluate", only=("words",)))


def test_scores_of_other_pairs_are_not_used(tmp_path: Path, trained: Dataset) -> None:
    align.run(job(trained, "align"))
    one = pq.read_table(trained.pairs.folder / "only.parquet").slice(0, 50)
    other = make_dataset(tmp_path, images=60)
    write_screened(other, {"only": one["uid"].to_pylist()})
    (tmp_path / "pairs" / "manifest.json").unlink()
    commit(other.pairs, {"only.parquet": one, "repeated.parquet": one.slice(0, 0)}, {"part": True})
    (tmp_path / "verdicts" / "filter" / "manifest.json").unlink()
    target = other.signals("alignment", "align").folder
    target.mkdir(parents=True)
    for path in trained.signals("alignment", "align").folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    with pytest.raises(PairmillError, match="other pairs"):
        filter.run(job(other, "filter", min_alignment=0.0))
