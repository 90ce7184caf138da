"""Datasets in which a table was broken off, cut short or taken away below later ones: what can still be asked of them,
and what is said instead of a wrong answer."""

import shutil
from collections.abc import Callable
from pathlib import Path

import asked_dataset
import duckdb
import pytest

from pipeline import catalog, summary
from pipeline.cli import main
from pipeline.explorer.search import spaces, without
from pipeline.store.dataset import EMBEDDINGS, Dataset
from pipeline.store.table import JOURNAL, MANIFEST, Table

RECIPE = """name = "asked"
[screen.rules]
max_images_per_text = 20
min_words = 3
max_words = 8
[filter.rules]
side_above = 200
max_copies = 1
near_duplicates = 2
[extract.pixel]
kind = "pixel"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset with features and an embedded run; read-only."""
    return asked_dataset.make(tmp_path_factory.mktemp("unfinished")).root


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Dataset:
    (tmp_path / "t.toml").write_text(RECIPE)
    return Dataset(shutil.copytree(made, tmp_path / "data"))


def break_off(table: Table) -> None:
    """As its stage leaves it when it is killed while it makes it anew."""
    (table.folder / MANIFEST).rename(table.folder / JOURNAL)


def remove(table: Table) -> None:
    shutil.rmtree(table.folder)


HARMS = pytest.mark.parametrize("harm", [break_off, remove])


def views_and_macros(dataset: Dataset) -> tuple[set[str], set[str]]:
    """Those of the catalog; each view has been read to its end."""
    catalog.refresh(dataset)
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        macros = connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'table_macro' AND NOT internal"
        ).fetchall()
        for (view,) in views:
            connection.execute(f"FROM {view}").fetchall()
    return {name for (name,) in views}, {name for (name,) in macros}


def called(dataset: Dataset, command: str, *more: object) -> int:
    needs_no_recipe = command in ("sql", "summary", "export")
    recipe = [] if needs_no_recipe else ["--recipe", str(dataset.root.parent / "t.toml"), "--workers", "1"]
    return main([command, "--data", str(dataset.root), *recipe, *map(str, more)])


@HARMS
def test_without_the_verdicts_of_screen_nothing_is_said_to_be_kept(
    dataset: Dataset, capfd: pytest.CaptureFixture[str], harm: Callable[[Table], None]
) -> None:
    whole = views_and_macros(dataset)
    harm(dataset.screened)
    views, macros = views_and_macros(dataset)
    gone = {"screened", "filtered", "verdicts", "drops", "kept", "funnel", "splits"}
    assert views == whole[0] - gone
    assert whole[1] - macros == {"funnel", "why", "would_keep", "similar"}
    assert called(dataset, "sql", "SELECT count(uid) FROM regions") == 0
    assert spaces(dataset, None, None) == []
    assert without(dataset, None) == ["screen is not finished: make screen"]
    assert called(dataset, "verify") == 0
    assert "verdicts/screen is not finished" in capfd.readouterr().out
    out = dataset.root.parent / "out"
    asked = [("report",), ("summary",), ("filter",), ("export", "--to", "jsonl", "--out", out), ("extract",)]
    for command, *options in asked:
        assert called(dataset, command, *options) == 1
        said = capfd.readouterr().err
        assert f"{dataset.screened.folder} is not there yet or not finished\n  -> run `make screen` first" in said


@HARMS
def test_without_the_images_there_is_a_report_without_pictures(
    dataset: Dataset, capfd: pytest.CaptureFixture[str], harm: Callable[[Table], None]
) -> None:
    whole = views_and_macros(dataset)
    harm(dataset.images)
    views, macros = views_and_macros(dataset)
    assert whole[0] - views == {"images", "contents", "splits", "duplicates"}
    assert whole[1] - macros == {"similar"}
    assert called(dataset, "sql", "FROM regions LIMIT 1") == 0
    assert spaces(dataset, None, None) == []
    assert without(dataset, None) == ["images is not finished: make download"]
    assert called(dataset, "report") == 0
    page = (dataset.root / "report" / "index.html").read_text()
    assert 'id="retrieval"' in page
    assert "R@10" in page
    assert "data:image" not in page
    assert called(dataset, "verify") == 0
    assert "images is not finished" in capfd.readouterr().out
    assert called(dataset, "export", "--to", "jsonl", "--out", dataset.root.parent / "out", "--where", "key > ''") == 1
    assert "run `make download` first" in capfd.readouterr().err


@pytest.mark.parametrize("lacking", ["pairs", "screened", "images", "filtered"])
def test_what_a_model_is_to_see_needs_every_stage(dataset: Dataset, lacking: str) -> None:
    table: Table = getattr(dataset, lacking)
    remove(table)
    with pytest.raises(Exception, match=f"run `make {table.made_by}` first"):
        dataset.kept_digest(("train",))


def test_a_dataset_that_was_not_begun_has_no_gaps(tmp_path: Path) -> None:
    assert Dataset(tmp_path).gaps == []


@pytest.mark.parametrize("stage", ["filter", "embed", "evaluate"])
def test_of_an_empty_folder_the_first_stage_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], stage: str
) -> None:
    (tmp_path / "t.toml").write_text(RECIPE)
    assert called(Dataset(tmp_path / "data"), stage) == 1
    assert "run `make ingest` first" in capfd.readouterr().err


@pytest.fixture
def two_runs(dataset: Dataset) -> Dataset:
    """Both embedded; the one that was made, "clip", is evaluated, and so the best."""
    shutil.copytree(dataset.run("clip").folder, dataset.run("other").folder)
    (dataset.run("other").folder / "evaluation.json").unlink()
    return dataset


def similar(dataset: Dataset, run: str) -> list[tuple[object, ...]]:
    catalog.refresh(dataset)
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        pair = "(SELECT min(uid) FROM kept SEMI JOIN embeddings USING (key))"
        return connection.execute(f'FROM "similar"({pair}, run := {run})').fetchall()


@pytest.mark.parametrize("cut", [5000, 0])
def test_a_run_whose_embeddings_are_cut_off_is_as_one_that_has_none(two_runs: Dataset, cut: int) -> None:
    answer = similar(two_runs, "NULL")
    assert answer
    path = two_runs.run("clip").folder / EMBEDDINGS
    path.write_bytes(path.read_bytes()[:cut] if cut < path.stat().st_size else b"PAR1")
    views, _ = views_and_macros(two_runs)
    assert "embeddings_clip" not in views
    assert {"embeddings", "embeddings_other"} <= views
    assert similar(two_runs, "NULL") == answer  # of the other run, which has the same embeddings
    with pytest.raises(duckdb.Error, match=r"a run that has embeddings: other$"):
        similar(two_runs, "'clip'")
    (two_runs.run("other").folder / EMBEDDINGS).write_bytes(b"")
    assert "similar" not in views_and_macros(two_runs)[1]


def test_similar_by_a_run_that_there_is_not_is_an_error(two_runs: Dataset) -> None:
    assert similar(two_runs, "'other'") == similar(two_runs, "'clip'") == similar(two_runs, "NULL")
    with pytest.raises(duckdb.Error, match=r"similar\(\) takes a run that has embeddings: clip, other$"):
        similar(two_runs, "'nosuch'")


def test_what_screen_once_let_pass_is_kept_as_far_as_it_is_known(dataset: Dataset) -> None:
    """Before the later stages have run, a summary counts what no rule has dropped yet."""
    for table in (dataset.filtered, dataset.images):
        remove(table)
    numbers = summary.collect(dataset)
    assert numbers["kept"] == dataset.screened.manifest.count("kept")
    remove(dataset.screened)
    assert dataset.gaps == []
    assert summary.collect(dataset)["kept"] == dataset.pairs.manifest.count("pairs")
