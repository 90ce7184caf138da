"""Where heavy work runs: one `map` over shards, on local processes or on Ray. The mapped function cannot tell which.

A worker that is lost (killed, out of memory) costs its shard another try, up to `RETRIES`; an error that the function
raises ends the stage. The function must be importable and its results small: shards are written by the workers
themselves.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from pipeline.errors import PairmillError

RETRIES = 2

Result = TypeVar("Result")


class Engine(Protocol):
    """Runs a function over task names and yields the results as they finish, in any order."""

    workers: int

    def map(self, function: Callable[[str], Result], tasks: Sequence[str], label: str) -> Iterator[Result]: ...


def engine(kind: str, workers: int) -> "Engine":
    """The engine named `kind`: "local" or "ray". `workers` = 0 means one a CPU core."""
    workers = workers or len(os.sched_getaffinity(0))
    if kind == "local":
        return LocalEngine(workers)
    if kind == "ray":
        return RayEngine(workers)
    raise PairmillError(f"there is no engine {kind!r}", "ENGINE is local or ray")


def _lost(task: str, tries: int) -> PairmillError:
    return PairmillError(
        f"shard {task} lost its worker {tries} times (killed, or out of memory)",
        "run it again to carry on, with fewer workers: [engine] workers in the recipe",
    )


class LocalEngine:
    """Spawned processes on this machine."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, function: Callable[[str], Result], tasks: Sequence[str], label: str) -> Iterator[Result]:
        tries = dict.fromkeys(tasks, 0)
        left = list(tasks)
        with tqdm(total=len(tasks), desc=label, unit="shard", disable=None if tasks else True) as bar:
            while left:
                pool = ProcessPoolExecutor(
                    min(self.workers, len(left)), multiprocessing.get_context("spawn"), initializer=_start_worker
                )
                try:
                    # Only as many as there are workers are out at once: a lost worker costs few others a try.
                    waiting = iter(list(left))
                    running: dict[Future[Result], str] = {}
                    for task in waiting:
                        tries[task] += 1
                        running[pool.submit(function, task)] = task
                        if len(running) < self.workers:
                            continue
                        yield from self._collect(running, left, bar)
                    while running:
                        yield from self._collect(running, left, bar)
                except BrokenProcessPool:
                    for task in left:
                        if tries[task] > RETRIES:
                            raise _lost(task, tries[task]) from None
                finally:
                    _stop(pool)

    def _collect(self, running: dict["Future[Result]", str], left: list[str], bar: Any) -> Iterator[Result]:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            result = future.result()
            left.remove(running.pop(future))
            bar.update()
            yield result


def _stop(pool: ProcessPoolExecutor) -> None:
    """End a pool at once, busy workers included: their shards are written under temporary names only."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _start_worker() -> None:
    """Tie the worker's life to its parent's, even if that is killed, and leave Ctrl-C to the parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayEngine:
    """Tasks on a Ray cluster: that of RAY_ADDRESS, or one started here. Its nodes must share the folders."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        try:
            import ray
        except ImportError:
            raise PairmillError("ENGINE=ray needs Ray", "pip install 'pairmill[ray]'") from None
        self.ray = ray

    def map(self, function: Callable[[str], Result], tasks: Sequence[str], label: str) -> Iterator[Result]:
        ray = self.ray
        if not ray.is_initialized():
            own_cluster = (
                {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.workers, "include_dashboard": False}
            )
            ray.init(log_to_driver=False, logging_level="error", **own_cluster)
        remote = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(function)
        pending = {remote.remote(task): task for task in tasks}
        with tqdm(total=len(tasks), desc=label, unit="shard", disable=None if tasks else True) as bar:
            try:
                while pending:
                    (done, *_), _ = ray.wait(list(pending), num_returns=1)
                    task = pending.pop(done)
                    try:
                        result = ray.get(done)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from None
                    except ray.exceptions.WorkerCrashedError:
                        raise _lost(task, RETRIES + 1) from None
                    bar.update()
                    yield result
            finally:
                for reference in pending:
                    with contextlib.suppress(Exception):
                        ray.cancel(reference, force=True)
