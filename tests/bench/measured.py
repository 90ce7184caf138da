"""A command in a process of its own: how long it took and how much memory it and its children had at once."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PAUSE = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Measured:
    """One finished command. `peak` is the greatest sum of resident bytes over the process and all that it started,
    looked at every 0.1 s; pages that processes share count once for each, so it is no less than what they need."""

    seconds: float
    processor: float
    """Seconds of processor time, of the process and of the children that it waited for."""
    peak: int
    output: str

    def __str__(self) -> str:
        last = self.output.strip().rpartition("\n")[2]
        return f"{self.seconds:8.2f} s {self.processor:8.2f} s of processor {self.peak / 1e9:6.2f} GB  {last[:110]}"


def measure(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Measured:
    """Run the command in a session of its own, from its start. Raises RuntimeError, with what it said, if it fails."""
    words = list(map(str, command))
    # Compiled modules are kept, as everywhere: without them each start would compile half a thousand files.
    settings = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=errors, start_new_session=True, env=settings)
        peaks: list[int] = [0]
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(PAUSE):
                peaks[0] = max(peaks[0], _resident(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, code, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = status = os.waitstatus_to_exitcode(code)
        ended.set()
        watcher.join()
        output.seek(0)
        errors.seek(0)
        if status:
            raise RuntimeError(f"{' '.join(words)[:500]} ended with {status}:\n{errors.read()[-4000:]}")
        return Measured(seconds, usage.ru_utime + usage.ru_stime, peaks[0], output.read())


def pairmill(stage: str, data: Path, recipe: Path, workers: int = 2) -> Measured:
    """One stage through the command line."""
    command = [sys.executable, "-m", "pipeline.cli", stage, "--data", data, "--recipe", recipe, "--workers", workers]
    return measure([str(word) for word in command])


def alternately(rounds: int, *runs: Callable[[], Measured]) -> list[Measured]:
    """Each run `rounds` times, in turns, so that the machine's moods fall on all; of each the run of median seconds,
    with the greatest peak of all."""
    taken: list[list[Measured]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, measured in zip(runs, taken, strict=True):
            measured.append(run())
            print(f"  {measured[-1]}", file=sys.stderr, flush=True)
    middle = [sorted(each, key=lambda one: one.seconds)[(len(each) - 1) // 2] for each in taken]
    return [replace(one, peak=max(run.peak for run in each)) for one, each in zip(middle, taken, strict=True)]


def _resident(session: int) -> int:
    """Resident bytes of all processes of a session."""
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat") as file:
                    after_name = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(after_name[3]) == session:
                total += int(after_name[21]) * _PAGE
    return total
