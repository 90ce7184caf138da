"""The catalog: views over the files, opened read-only, in step with the data and with nothing else."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest
from served import Web

from pipeline.catalog import refresh
from pipeline.cli import main
from pipeline.store.dataset import Dataset


@pytest.fixture(scope="module")
def made(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only."""
    folder = tmp_path_factory.mktemp("catalog")
    for stage in ("ingest", "screen"):
        assert main([stage, "--data", str(folder), "--recipe", str(web.recipe)]) == 0
    return folder


@pytest.fixture
def data(web: Web, made: Path, tmp_path: Path) -> Path:
    """A dataset of the test's own with a catalog."""
    data = Path(shutil.copytree(made, tmp_path / "data"))
    assert main(["catalog", "--data", str(data), "--recipe", str(web.recipe)]) == 0
    return data


def sql(data: Path, query: str) -> int:
    return main(["sql", "--data", str(data), query])


def test_the_funnel_and_the_kept_pairs_make_up_all_pairs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = (
        "SELECT (SELECT sum(pairs) FROM funnel) + (SELECT count(*) FROM kept) = (SELECT count(*) FROM pairs) AS same"
    )
    assert sql(data, query) == 0
    assert "true" in capsys.readouterr().out


@pytest.mark.parametrize("query", ["DROP VIEW pairs", "CREATE TABLE t AS SELECT 1", "SELEC 1", "FROM nowhere"])
def test_what_writes_or_is_wrong_is_refused_in_duckdbs_words(
    data: Path, query: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (data / "catalog.duckdb").read_bytes()
    assert sql(data, query) == 1
    assert "Error" in capsys.readouterr().err
    assert (data / "catalog.duckdb").read_bytes() == before


def test_a_training_is_seen_by_the_next_question(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Dataset(data).run("one").writing("k", {}) as writing:
        writing.commit({"steps": 7, "parameters": 5, "loss_first": 2.0, "loss_last": 1.0})
    capsys.readouterr()
    assert sql(data, "SELECT run || '!' AS said, steps FROM runs") == 0
    assert "one!" in capsys.readouterr().out


def test_many_may_ask_while_it_is_made_anew(data: Path) -> None:
    dataset = Dataset(data)

    def ask(_: int) -> int:
        refresh(dataset)
        with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
            return len(connection.execute("FROM kept").fetchall())

    for path in data.glob("catalog.duckdb*"):
        path.unlink()
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1


def test_it_follows_the_dataset_to_another_folder(
    web: Web, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    data.rename(moved)
    assert main(["catalog", "--data", str(moved), "--recipe", str(web.recipe)]) == 0
    assert sql(moved, "FROM kept") == 0


def test_sql_answers_from_the_tables_of_now(web: Web, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = data / "other.toml"
    recipe.write_text(web.recipe.read_text().replace("min_words = 3", "min_words = 2"))
    assert main(["screen", "--data", str(data), "--recipe", str(recipe)]) == 0
    capsys.readouterr()
    assert sql(data, "SELECT threshold::INT AS t FROM rules WHERE rule = 'min_words'") == 0
    assert "2" in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    "damage", [lambda whole: b"g" * 9000, lambda whole: b"", lambda whole: whole[:-7] + b"damaged"]
)
def test_a_damaged_one_is_made_anew(
    data: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = data / "catalog.duckdb"
    catalog.write_bytes(damage(catalog.read_bytes()))
    assert refresh(Dataset(data))
    assert refresh(Dataset(data)) is None
    assert sql(data, "SELECT count(*) > 0 AS some FROM pairs") == 0
    assert "true" in capsys.readouterr().out
