"""Functions for the engines' workers: importable, and told by files what to do."""

import os
import signal
import time
from pathlib import Path

from pipeline.errors import PairmillError


def shout(task: str) -> str:
    return task.upper()


def die_at_first(task: str, *, folder: Path, victims: frozenset[str], times: int) -> str:
    """Die by kill -9 in the first `times` tries of each victim."""
    tries = folder / f"{task}.tries"
    with open(tries, "a") as file:
        file.write("x")
    if task in victims and tries.stat().st_size <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.startswith("slow"):
        time.sleep(1)
    return task.upper()


def fail(task: str, *, error: str) -> str:
    if task == "b":
        if error == "pairmill":
            raise PairmillError("shard b is bad", "look at it")
        if error == "disk":
            raise OSError(28, "No space left on device", "/some/file")
        raise ValueError("no such value")
    return task


def wait_for_ever(task: str, *, folder: Path) -> str:
    (folder / f"{task}.{os.getpid()}").touch()
    time.sleep(600)
    return task


def meet(task: str, *, folder: Path, workers: int) -> str:
    """Wait until `workers` processes are here at once, and say which GPU this one sees."""
    (folder / f"{task}.here").touch()
    end = time.monotonic() + 30
    while len(list(folder.glob("*.here"))) < workers:
        assert time.monotonic() < end, "the others did not come"
        time.sleep(0.01)
    return os.environ["CUDA_VISIBLE_DEVICES"]
