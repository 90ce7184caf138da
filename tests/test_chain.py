"""The whole chain: against an independent count, on both engines, and through kills at random moments."""

import os
import random
import shutil
import signal
import time
import tomllib
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import reference
from command import DATA_STAGES, call, committed_bytes, finish, kill_hard, session_members, start, until
from served import FAULTS, Web

from pipeline import summary
from pipeline.cli import main
from pipeline.store.dataset import Dataset


def is_undecodable(content: bytes) -> bool:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) is None


def run(stage: str, web: Web, data: Path, *more: str) -> None:
    assert main([stage, "--data", str(data), "--recipe", str(web.recipe), "--workers", "2", *more]) == 0


@pytest.fixture(scope="module")
def built(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, on local processes."""
    data = tmp_path_factory.mktemp("built")
    for stage in (*DATA_STAGES, "catalog"):
        run(stage, web, data)
    return data


@pytest.fixture(scope="module")
def expected(web: Web) -> reference.Outcome:
    recipe = tomllib.loads(web.recipe.read_text())
    return reference.chain(
        web.lists,
        web.corpus.pictures,
        vars(FAULTS),
        recipe["screen"]["rules"],
        recipe["filter"]["rules"],
        recipe["download"]["max_megapixels"],
        recipe["download"]["max_bytes"],
        is_undecodable,
    )


def verdicts_of(data: Path, stage: str) -> dict[str, list[tuple[str, float]]]:
    with Dataset(data).connect() as connection:
        rows = connection.execute(
            "SELECT uid, rule, value FROM verdicts JOIN rules USING (stage, rule) WHERE stage = ? "
            "ORDER BY uid, position",
            [stage],
        ).fetchall()
    found = defaultdict(list)
    for uid, rule, value in rows:
        found[uid].append((rule, value))
    return dict(found)


def test_the_corpus_meets_every_rule_and_cause(expected: reference.Outcome) -> None:
    rules = {rule for verdicts in (expected.screened, expected.filtered) for v in verdicts.values() for rule, _ in v}
    assert rules == {
        *("max_images_per_text", "min_words", "max_words", "vocabulary"),
        *("side_above", "aspect_below", "max_texts_per_image", "max_copies"),
    }
    causes = {"http_404", "timeout", "not_image", "max_pixels", "max_bytes", "undecodable"}
    assert set(expected.failed.values()) == causes
    assert expected.ingested.quarantined == 2
    assert expected.ingested.repeated >= 5
    assert len(expected.kept) > 30


def test_pairs_are_those_of_the_independent_count(built: Path, expected: reference.Outcome) -> None:
    dataset = Dataset(built)
    with dataset.connect() as connection:
        rows = connection.execute("SELECT uid, url, text FROM pairs").fetchall()
    assert {uid: (url, text) for uid, url, text in rows} == expected.ingested.pairs
    assert dataset.pairs.manifest.count("repeated") == expected.ingested.repeated
    assert dataset.quarantine.manifest.count("rows_in") == expected.ingested.rows_in
    assert dataset.quarantine.manifest.count("quarantined") == expected.ingested.quarantined


def test_screen_gives_every_verdict_of_the_independent_count(built: Path, expected: reference.Outcome) -> None:
    assert verdicts_of(built, "screen") == expected.screened


def test_every_url_ends_as_the_independent_count_says(built: Path, expected: reference.Outcome) -> None:
    with Dataset(built).connect() as connection:
        rows = connection.execute("SELECT url, status, sha256, original_width, original_height FROM images").fetchall()
    found = {
        url: reference.Picture(status, *((sha256, width, height) if status == "ok" else ()))
        for url, status, sha256, width, height in rows
    }
    assert found == expected.pictures


def test_filter_gives_every_verdict_of_the_independent_count(built: Path, expected: reference.Outcome) -> None:
    assert verdicts_of(built, "filter") == expected.filtered


def test_kept_and_funnel_are_those_of_the_independent_count(built: Path, expected: reference.Outcome) -> None:
    with Dataset(built).connect() as connection:
        kept = connection.execute("SELECT uid FROM kept").fetchall()
        funnel = connection.execute("SELECT rule, pairs FROM funnel WHERE pairs > 0").fetchall()
    assert {uid for (uid,) in kept} == expected.kept
    assert len(kept) == len(expected.kept)
    assert dict(funnel) == expected.first_causes()


def test_summary_adds_up(built: Path, expected: reference.Outcome) -> None:
    numbers = summary.collect(Dataset(built))
    assert summary.is_balanced(numbers)
    assert numbers["pairs_in"] == expected.ingested.rows_in
    assert numbers["kept"] == len(expected.kept)
    kept_urls = {expected.ingested.pairs[uid][0] for uid in expected.kept}
    assert numbers["images_kept"] == len({expected.pictures[url].sha256 for url in kept_urls})
    assert {name: value["rows"] for name, value in numbers["features"].items()} == dict.fromkeys(
        ("region", "grid", "pixel"), numbers["images_kept"]
    )


def test_no_content_stands_in_two_splits(built: Path) -> None:
    with Dataset(built).connect() as connection:
        query = "SELECT count(*) FROM (SELECT sha256 FROM images GROUP BY sha256 HAVING count(DISTINCT split) > 1)"
        assert connection.execute(query).fetchone() == (0,)
        splits = dict(connection.execute("SELECT split, count(*) FROM kept GROUP BY split").fetchall())
    assert set(splits) == {"train", "validation", "test"}


def test_ray_makes_the_same_bytes(built: Path, web: Web, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    for stage in DATA_STAGES:
        run(stage, web, tmp_path / "data", "--engine", "ray")
    assert committed_bytes(tmp_path / "data") == committed_bytes(built)


def test_the_number_of_workers_changes_no_byte(built: Path, web: Web, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(built, data)
    shutil.rmtree(data / "features")
    run("extract", web, data, "--workers", "1")
    assert committed_bytes(data) == committed_bytes(built)


def test_a_second_call_says_up_to_date(built: Path, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in (*DATA_STAGES, "catalog"):
        run(stage, web, built)
    assert [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()] == ["up to date"] * 6


def test_editing_train_leaves_every_data_stage_up_to_date(
    built: Path, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = Path(__file__).parents[1] / "recipes" / "models"
    recipe = tmp_path / "edited.toml"
    recipe.write_text(
        f'extends = "{web.recipe}"\n[train.uniter]\nmodel = "{models / "uniter.toml"}"\nscale = "tiny"\nsteps = 3\n'
    )
    for stage in DATA_STAGES:
        assert main([stage, "--data", str(built), "--recipe", str(recipe)]) == 0
    assert [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()] == ["up to date"] * 5


def disturb(recipe: Path, data: Path, stages: tuple[str, ...], kills: int, seed: int, *more: str) -> None:
    """Run the stages, killed `kills` times at random moments on the way."""
    draw = random.Random(seed)
    arguments = ("--data", data, "--recipe", recipe, "--workers", 2)
    plan = [draw.choice(stages) for _ in range(kills)]
    plan[: len(stages)] = stages[: len(plan)]
    for stage in stages:
        command = (stage, *arguments, *(more if stage == "extract" else ()))
        for _ in range(plan.count(stage)):
            process = start(*command, cwd=data.parent)
            log = data / "logs" / f"{stage}.jsonl"
            until(lambda log=log, process=process: log.exists() or process.poll() is not None, 60)
            time.sleep(draw.random() * {"extract": 6.0, "download": 6.0, "ingest": 2.0}.get(stage, 3.0))
            if process.poll() is None:
                kill_hard(process)
            else:
                process.communicate()
        status, out, err = call(*command, cwd=data.parent)
        assert (status, "Traceback" in err) == (0, False), out + err


def test_killed_at_random_moments_the_same_bytes_are_there_in_the_end(built: Path, web: Web, tmp_path: Path) -> None:
    disturb(web.recipe, tmp_path / "data", DATA_STAGES, 5, 1, "--only", "pixel")
    expected = committed_bytes(built)
    assert committed_bytes(tmp_path / "data") == {
        name: digest for name, digest in expected.items() if not name.startswith(("features/grid", "features/region"))
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_30_times_the_same_bytes_are_there_in_the_end(web: Web, tmp_path: Path) -> None:
    recipe = tmp_path / "more.toml"
    recipe.write_text(
        f'extends = "{web.recipe}"\n[screen.rules]\nmax_repetition = 0.9\nmax_texts_per_url = 20\n'
        'languages = ["en", "de", "ru", "und", "zh", "hi", "fr", "nl", "it", "es"]\n'
        "[filter.rules]\nmax_look_alikes = 1\nnear_duplicates = 6\n"
    )
    stages = ("ingest", "screen", "download", "filter")
    for stage in stages:
        assert main([stage, "--data", str(tmp_path / "whole"), "--recipe", str(recipe), "--workers", "2"]) == 0
    disturb(recipe, tmp_path / "data", stages, 30, 2)
    assert committed_bytes(tmp_path / "data") == committed_bytes(tmp_path / "whole")
    with Dataset(tmp_path / "data").connect() as connection:
        failing = dict(connection.execute("SELECT rule, failing FROM funnel").fetchall())
    assert failing["near_duplicates"] > 0
    assert failing["languages"] > 0


@pytest.mark.parametrize("stage", ["download", "extract"])
def test_ctrl_c_ends_with_status_130_and_one_line(built: Path, web: Web, tmp_path: Path, stage: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(built, data)
    shutil.rmtree(data / {"download": "images", "extract": "features"}[stage])
    process = start(stage, "--data", data, "--recipe", web.recipe, "--workers", 2, cwd=tmp_path)
    until(lambda: len(session_members(process.pid)) >= 4, 60, "two workers beside the stage and its resource tracker")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the whole group
    status, _, err = finish(process)
    assert status == 130
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if "it/s" not in line and "shard" not in line and line.strip()] == [
        "error: interrupted; what is done is kept: run it again to carry on"
    ]
    until(lambda: not session_members(process.pid), 10, "workers outlive Ctrl-C")


def test_a_touched_list_makes_only_ingest_again(
    web: Web, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(built, data)
    for path in web.lists:
        os.utime(path)
    run("ingest", web, data)
    assert "up to date" not in capsys.readouterr().out
    for stage in ("screen", "download", "filter", "extract"):  # the server's requests would fail: ports are not asked
        run(stage, web, data)
        assert "up to date" in capsys.readouterr().out


def test_a_shard_that_went_missing_is_named_with_the_stage_that_makes_it(
    web: Web, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(built, data)
    (data / "pairs" / "00000.parquet").unlink()
    assert main(["screen", "--data", str(data), "--recipe", str(web.recipe)]) == 1
    assert "run `make ingest`" in capsys.readouterr().err
