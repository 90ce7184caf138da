"""Where heavy work runs: one `map` over shards, on local processes or on Ray. The mapped function cannot tell which.

A worker that is lost (killed, out of memory) costs its shard another try, up to `RETRIES`; an error that the function
raises ends the stage. The function must be importable and its results small: shards are written by the workers
themselves.
"""

import contextlib
import multiprocessing
import os
import signal
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

    def light(self) -> "Engine":
        """An engine for work that is done sooner than workers start, where that is one of its own."""

    def close(self) -> None: ...


def engine(kind: str, workers: int) -> "Engine":
    """The engine named `kind`: "local" or "ray". `workers` = 0 means one a CPU core."""
    if workers < 0:
        raise PairmillError(f"{workers} workers are too few", "0 means one a core")
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


class InlineEngine:
    """This process, one task after the other."""

    workers = 1

    def map(self, function: Callable[[str], Result], tasks: Sequence[str], label: str) -> Iterator[Result]:
        yield from map(function, tqdm(tasks, desc=label, unit="shard", disable=None if tasks else True))

    def light(self) -> "Engine":
        return self

    def close(self) -> None:
        """There is nothing to end."""


class LocalEngine:
    """Spawned processes on this machine. They outlive a `map`, since starting one and its imports takes seconds."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """End the workers. The next `map` starts others."""
        if self._pool is not None:
            _stop(self._pool)
            self._pool = None

    def light(self) -> Engine:
        return InlineEngine()

    def map(self, function: Callable[[str], Result], tasks: Sequence[str], label: str) -> Iterator[Result]:
        tries = dict.fromkeys(tasks, 0)
        left = list(tasks)
        with tqdm(total=len(tasks), desc=label, unit="shard", disable=None if tasks else True) as bar:
            suspects: set[str] = set()
            while left:
                if self._pool is None:
                    context = multiprocessing.get_context("spawn")
                    self._pool = ProcessPoolExecutor(self.workers, context, initializer=_start_worker)
                running: dict[Future[Result], str] = {}
                finished = False
                try:
                    # Only as many as there are workers are out at once, and what was out when a worker was lost goes
                    # alone, last: so a lost worker costs few others a try, and the blame falls on the right one.
                    for task in sorted(left, key=suspects.__contains__):
                        while running and (len(running) >= self.workers or task in suspects):
                            yield from self._collect(running, left, bar)
                        tries[task] += 1
                        with _deaf_to_interrupts():
                            running[self._pool.submit(function, task)] = task
                    while running:
                        yield from self._collect(running, left, bar)
                    finished = True
                except BrokenProcessPool:
                    suspects.update(running.values())
                    for task in running.values():
                        if tries[task] > RETRIES:
                            raise _lost(task, tries[task]) from None
                finally:
                    if not finished:
                        self.close()

    def _collect(self, running: dict["Future[Result]", str], left: list[str], bar: Any) -> Iterator[Result]:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            result = future.result()
            left.remove(running.pop(future))
            bar.update()
            yield result


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that start in this block hear no Ctrl-C, not even before `_start_worker` runs in them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _call(function: Callable[[str], Result], task: str) -> Result:
    """What Ray runs: it takes plain functions only, and a stage's is a partial one."""
    return function(task)


class RayEngine:
    """Tasks on a Ray cluster: that of RAY_ADDRESS, or one started here. Its nodes must share the folders."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        try:
            import ray
        except ImportError:
            raise PairmillError("ENGINE=ray needs Ray", "pip install 'pairmill[ray]'") from None
        self.ray = ray

    def light(self) -> Engine:
        return self  # what runs on a cluster is to run there whatever its size

    def close(self) -> None:
        """Nothing of the cluster's is this process' own."""

    def map(self, function: Callable[[str], Result], tasks: Sequence[str], label: str) -> Iterator[Result]:
        ray = self.ray
        if not ray.is_initialized():
            os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # the first error ends the stage; the others say no more
            own_cluster = (
                {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.workers, "include_dashboard": False}
            )
            ray.init(log_to_driver=False, logging_level="error", **own_cluster)
        remote = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(_call)
        shared = ray.put(function)
        pending = {remote.remote(shared, task): task for task in tasks}
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
