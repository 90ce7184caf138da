"""Where heavy work runs: one `map` over shards, on local processes or on Ray. The mapped function cannot tell which.

A worker that is lost (killed, out of memory) costs its shard another try, up to `RETRIES`; an error that the function
raises ends the stage. The function must be importable and its results small: shards are written by the workers
themselves. Work for a GPU runs on the engine that `on_gpus` gives: each of its workers sees one GPU and no other, so
the function takes "cuda" and need not know which.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from pipeline.errors import PairmillError
from pipeline.gpus import VISIBLE, visible_gpus

RETRIES = 2

Result = TypeVar("Result")


class Engine(Protocol):
    """Runs a function over task names and yields the results as they finish, in any order."""

    workers: int
    cores: int
    """What a worker may have busy at once."""

    def map(
        self,
        function: Callable[[str], Result],
        tasks: Sequence[str],
        label: str,
        images: Mapping[str, int] | None = None,
    ) -> Iterator[Result]:
        """`images`: how many each task has, for a progress bar that counts them and not shards."""

    def light(self) -> "Engine":
        """An engine for work that is done sooner than workers start, where that is one of its own."""

    def on_gpus(self) -> "Engine":
        """An engine with a worker for each GPU; where there is none, this one. It ends with this one's `close`."""

    def close(self) -> None: ...


def engine(kind: str, workers: int) -> "Engine":
    """The engine named `kind`: "local" or "ray". `workers` = 0 means one a CPU core."""
    if workers < 0:
        raise PairmillError(f"{workers} workers are too few", "0 means one a core")
    workers = workers or own_cores()
    if kind == "local":
        return LocalEngine(workers)
    if kind == "ray":
        return RayEngine(workers)
    raise PairmillError(f"there is no engine {kind!r}", "ENGINE is local or ray")


def own_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _bar(tasks: Sequence[str], label: str, images: Mapping[str, int] | None) -> Any:
    total, unit = (len(tasks), "shard") if images is None else (sum(images[task] for task in tasks), "image")
    return tqdm(total=total, desc=label, unit=unit, disable=None if tasks else True)


def _lost(task: str, tries: int) -> PairmillError:
    return PairmillError(
        f"shard {task} lost its worker {tries} times (killed, or out of memory)",
        "run it again to carry on, with fewer workers: [engine] workers in the recipe",
    )


class InlineEngine:
    """This process, one task after the other."""

    workers = 1

    def __init__(self) -> None:
        self.cores = own_cores()

    def map(
        self,
        function: Callable[[str], Result],
        tasks: Sequence[str],
        label: str,
        images: Mapping[str, int] | None = None,
    ) -> Iterator[Result]:
        with _bar(tasks, label, images) as bar:
            for task in tasks:
                yield function(task)
                bar.update(images[task] if images else 1)

    def light(self) -> "Engine":
        return self

    def on_gpus(self) -> "Engine":
        return self

    def close(self) -> None:
        """There is nothing to end."""


class LocalEngine:
    """Spawned processes on this machine. They outlive a `map`, since starting one and its imports takes seconds."""

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        """`gpus`: one for each worker, as CUDA names them."""
        self.workers = workers
        self.cores = max(1, own_cores() // workers)
        self._gpus = tuple(gpus)
        self._pool: ProcessPoolExecutor | None = None
        self._on_gpus: LocalEngine | None = None

    def close(self) -> None:
        """End the workers. The next `map` starts others."""
        if self._pool is not None:
            _stop(self._pool)
            self._pool = None
        if self._on_gpus is not None:
            self._on_gpus.close()

    def light(self) -> Engine:
        return InlineEngine()

    def on_gpus(self) -> Engine:
        if self._on_gpus is None and (gpus := visible_gpus()):
            self._on_gpus = LocalEngine(len(gpus), gpus)
        return self._on_gpus or self

    def _started(self) -> ProcessPoolExecutor:
        """The pool, as yet without workers. Its queues start multiprocessing's resource tracker, which takes signals
        off the mask when it is there: it must be before `_interrupts_held`."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            free = context.SimpleQueue()
            for gpu in self._gpus:
                free.put(gpu)
            self._pool = ProcessPoolExecutor(self.workers, context, _start_worker, (free if self._gpus else None,))
        return self._pool

    def map(
        self,
        function: Callable[[str], Result],
        tasks: Sequence[str],
        label: str,
        images: Mapping[str, int] | None = None,
    ) -> Iterator[Result]:
        tries = dict.fromkeys(tasks, 0)
        left = list(tasks)
        with _bar(tasks, label, images) as bar:
            suspects: set[str] = set()
            while left:
                running: dict[Future[Result], str] = {}
                finished = False
                try:
                    # Only as many as there are workers are out at once, and what was out when a worker was lost goes
                    # alone, last: so a lost worker costs few others a try, and the blame falls on the right one.
                    for task in sorted(left, key=suspects.__contains__):
                        while running and (len(running) >= self.workers or task in suspects):
                            yield from self._collect(running, left, bar, images)
                        tries[task] += 1
                        pool = self._started()
                        with _interrupts_held():
                            running[pool.submit(function, task)] = task
                    while running:
                        yield from self._collect(running, left, bar, images)
                    finished = True
                except BrokenProcessPool:
                    suspects.update(running.values())
                    for task in running.values():
                        if tries[task] > RETRIES:
                            raise _lost(task, tries[task]) from None
                finally:
                    if not finished:
                        self.close()

    def _collect(
        self, running: dict["Future[Result]", str], left: list[str], bar: Any, images: Mapping[str, int] | None
    ) -> Iterator[Result]:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            result = future.result()
            task = running.pop(future)
            left.remove(task)
            bar.update(images[task] if images else 1)
            yield result


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A Ctrl-C in this block is raised at its end, and processes that start in it never hear one.

    They inherit the mask, and so are deaf before `_start_worker` runs in them. In this process the mask is not enough:
    the signal goes to any thread that is not deaf (tqdm's, DuckDB's), and Python then raises in the main thread all
    the same. A worker whose start is broken off so has been given a pipe and nothing in it: it ends in a traceback.
    """
    held: list[int] = []
    is_interrupted = threading.current_thread() is threading.main_thread()  # Python interrupts no other
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number)) if is_interrupted else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_interrupted:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End a pool at once, busy workers included: their shards are written under temporary names only."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _start_worker(free_gpus: Any) -> None:
    """Tie the worker's life to its parent's, even if that is killed, leave Ctrl-C to the parent, and take a GPU.

    A GPU that is taken is the worker's for good: when one is lost, all end, and a new pool has its own queue.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if free_gpus is not None:
        os.environ[VISIBLE] = free_gpus.get()
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

    def __init__(self, workers: int, cores: int = 1, gpus: int = 0) -> None:
        """`cores` and `gpus` are a task's."""
        self.workers, self.cores, self._gpus = workers, cores, gpus
        try:
            import ray
        except ImportError:
            raise PairmillError("ENGINE=ray needs Ray", "pip install 'pairmill[ray]'") from None
        self.ray: Any = ray

    def light(self) -> Engine:
        return self  # what runs on a cluster is to run there whatever its size

    def on_gpus(self) -> Engine:
        self._connect()
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        shares = [(int(node["GPU"]), int(node.get("CPU", 0) // node["GPU"])) for node in nodes if node.get("GPU")]
        if not shares:
            return self
        # No more cores a task than its node has for each GPU: it would never start.
        return RayEngine(sum(gpus for gpus, _ in shares), max(1, min(cores for _, cores in shares)), 1)

    def close(self) -> None:
        """Nothing of the cluster's is this process' own."""

    def _connect(self) -> None:
        if not self.ray.is_initialized():
            os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # the first error ends the stage; the others say no more
            own_cluster = (
                {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.workers, "include_dashboard": False}
            )
            self.ray.init(log_to_driver=False, logging_level="error", **own_cluster)

    def map(
        self,
        function: Callable[[str], Result],
        tasks: Sequence[str],
        label: str,
        images: Mapping[str, int] | None = None,
    ) -> Iterator[Result]:
        ray = self.ray
        self._connect()
        needs = {"num_cpus": self.cores, "num_gpus": self._gpus, "max_retries": RETRIES, "retry_exceptions": False}
        remote = ray.remote(**needs)(_call)
        shared = ray.put(function)
        pending = {remote.remote(shared, task): task for task in tasks}
        with _bar(tasks, label, images) as bar:
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
                    bar.update(images[task] if images else 1)
                    yield result
            finally:
                for reference in pending:
                    with contextlib.suppress(Exception):
                        ray.cancel(reference, force=True)
