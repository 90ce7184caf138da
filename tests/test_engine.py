"""Both engines: every task's result, lost workers, errors, and no process left behind."""

import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import command
import engine_tasks
import pytest

from pipeline.engine import engine
from pipeline.errors import PairmillError

KINDS = ["local", "ray"]


def make(kind: str, workers: int = 2) -> Any:
    if kind == "ray":
        pytest.importorskip("ray", reason="the extra `ray` is not installed")
    return engine(kind, workers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tasks", [[], ["a"], list("abcdefg")])
def test_every_task_gives_one_result(kind: str, tasks: list[str]) -> None:
    assert sorted(make(kind).map(engine_tasks.shout, tasks, "test")) == [task.upper() for task in tasks]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_worker_costs_its_shard_another_try_and_not_the_stage(kind: str, tmp_path: Path) -> None:
    work = partial(engine_tasks.die_at_first, folder=tmp_path, victims=frozenset("bd"), times=1)
    assert sorted(make(kind).map(work, list("abcde"), "test")) == list("ABCDE")
    assert (tmp_path / "b.tries").stat().st_size >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_loses_its_worker_twice_still_comes_through(kind: str, tmp_path: Path) -> None:
    work = partial(engine_tasks.die_at_first, folder=tmp_path, victims=frozenset("b"), times=2)
    assert sorted(make(kind).map(work, list("abc"), "test")) == list("ABC")


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_always_loses_its_worker_is_named_and_no_other(kind: str, tmp_path: Path) -> None:
    work = partial(engine_tasks.die_at_first, folder=tmp_path, victims=frozenset(["bad"]), times=99)
    with pytest.raises(PairmillError, match="shard bad lost its worker 3 times"):
        list(make(kind).map(work, ["slow1", "bad", "slow2"], "test"))
    assert (tmp_path / "bad.tries").stat().st_size == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "kinds", "said"),
    [
        ("pairmill", PairmillError, "shard b is bad\n  -> look at it"),
        ("disk", OSError, "No space left on device"),
        ("value", ValueError, "no such value"),
    ],
)
def test_an_error_of_the_function_ends_the_stage_with_its_own_words(
    kind: str, error: str, kinds: type[Exception], said: str
) -> None:
    with pytest.raises(kinds) as raised:
        list(make(kind).map(partial(engine_tasks.fail, error=error), list("abc"), "test"))
    assert said in str(raised.value)
    if isinstance(raised.value, OSError):
        assert (raised.value.errno, raised.value.filename) == (28, "/some/file")


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(PairmillError, match="local or ray"):
        engine("cluster", 1)


@pytest.mark.parametrize("workers", [-1, -100])
def test_fewer_than_no_workers_are_refused(workers: int) -> None:
    with pytest.raises(PairmillError, match="workers"):
        engine("local", workers)


def test_busy_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from functools import partial
            from pathlib import Path
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import engine_tasks
            from pipeline.engine import engine
            if __name__ == "__main__":
                work = partial(engine_tasks.wait_for_ever, folder=Path({str(tmp_path)!r}))
                list(engine("local", 2).map(work, ["a", "b", "c"], "test"))
            """
        )
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    command.until(lambda: len(list(tmp_path.glob("[ab].*"))) == 2, 30, "two busy workers")
    command.kill_hard(parent)


def test_busy_workers_do_not_outlive_an_abandoned_map(tmp_path: Path) -> None:
    work = partial(engine_tasks.die_at_first, folder=tmp_path, victims=frozenset(), times=0)
    results = make("local").map(work, ["a", "slow1", "slow2"], "test")
    assert next(results) == "A"
    results.close()
    assert not list(tmp_path.glob("slow2.tries"))
