"""Questions to a catalog: read-only, and limited in time, rows, memory and files. Users do not wait for each other.

Each question goes to a process of its own while it is answered (`worker.py`); idle ones are kept for the next.
"""

import asyncio
import pickle
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from pipeline.errors import PairmillError
from pipeline.explorer.worker import Answer, Column, Question, Refused
from pipeline.store.dataset import Dataset

__all__ = ["ROWS", "SECONDS", "Answer", "Column", "Macro", "Querying", "View"]

ROWS = 1_000
SECONDS = 20.0
MEMORY = "2GB"
"""DuckDB's, for each question that is being answered."""
SPILLED = "8GB"
"""On disk, likewise."""
AT_ONCE = 6
"""Questions of the app's own being answered, and as many that users typed; further ones wait for their turn."""
OF_ONE = 2
"""Of those that were typed, how many may be one browser's."""


@dataclass(frozen=True)
class Described:
    """A column of a view, with its type and the catalog's comment."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class View:
    """A view of the catalog, with its comment and its columns."""

    name: str
    comment: str
    columns: tuple[Described, ...]


@dataclass(frozen=True)
class Macro:
    """A macro of the catalog, as it is called."""

    name: str
    parameters: tuple[str, ...]
    comment: str


class Querying:
    """Answers from a dataset's catalog as it is now: what is made anew while the app runs is seen by the next query."""

    def __init__(self, dataset: Dataset, memory: str = MEMORY, at_once: int = AT_ONCE, of_one: int = OF_ONE) -> None:
        self._dataset, self._memory = dataset, memory
        self._idle: list[_Process] = []
        self._running: set[_Process] = set()
        # What users typed may take its whole time: the pages' own questions do not wait for it.
        self._turns, self._typed = asyncio.Semaphore(at_once), asyncio.Semaphore(at_once)
        self._of_one = of_one
        self._browsers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._spill = tempfile.TemporaryDirectory(prefix="pairmill-explore-")
        self._described: dict[tuple[int, int], tuple[dict[str, View], list[Macro]]] = {}

    async def ask(self, sql: str, parameters: Sequence[object], rows: int, seconds: float) -> Answer:
        answer: Answer = await self._answer(Question(sql, tuple(parameters), rows, "values"), seconds)
        return answer

    async def show(self, sql: str, rows: int, seconds: float, who: str = "") -> Answer:
        of_browser = self._browsers.setdefault(who, asyncio.Semaphore(self._of_one))
        async with of_browser, self._typed:
            answer: Answer = await self._answered(Question(sql, (), rows, "texts"), seconds)
        return answer

    async def arrays(self, sql: str, parameters: Sequence[object], seconds: float) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = await self._answer(Question(sql, tuple(parameters), form="arrays"), seconds)
        return arrays

    async def views(self) -> dict[str, View]:
        return (await self._description())[0]

    async def macros(self) -> list[Macro]:
        return (await self._description())[1]

    async def warm(self) -> None:
        """Have a process ready for the first question."""
        self._idle.append(await self._started())

    async def close(self) -> None:
        """End all processes, and take away what was spilled."""
        running, self._running = self._running, set()
        for process in running:
            process.kill()
        await asyncio.gather(*(process.running.wait() for process in running))
        self._spill.cleanup()

    async def _description(self) -> tuple[dict[str, View], list[Macro]]:
        state = self.state()
        if state not in self._described:
            columns = await self.ask(_COLUMNS, (), 10_000, SECONDS)
            macros = await self.ask(_MACROS, (), 1_000, SECONDS)
            views: dict[str, View] = {}
            for row in columns.rows:
                view = views.setdefault(row["view"], View(row["view"], row["about"], ()))
                described = Described(row["name"], row["type"], row["comment"])
                views[view.name] = View(view.name, view.comment, (*view.columns, described))
            found = [Macro(row["name"], tuple(row["parameters"]), row["comment"]) for row in macros.rows]
            self._described = {state: (views, found)}
        return self._described[state]

    def state(self) -> tuple[int, int]:
        """Which catalog answers now: another one has another state."""
        try:
            now = self._dataset.catalog.stat()
        except FileNotFoundError:
            raise PairmillError(f"{self._dataset.catalog} is not there", "run `make catalog`") from None
        return now.st_ino, now.st_mtime_ns

    async def _answer(self, question: Question, seconds: float) -> Any:
        async with self._turns:
            return await self._answered(question, seconds)

    async def _answered(self, question: Question, seconds: float) -> Any:
        process = await self._taken()
        try:
            async with asyncio.timeout(seconds):  # unlike wait_for, it never loses that whoever asked has gone
                reply = await process.ask(question)
        except TimeoutError:
            process.kill()
            raise PairmillError(
                f"stopped after {seconds:g} s", "ask for less: fewer rows, a narrower WHERE, a sample"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            process.kill()
            raise PairmillError(
                f"the process that answered was ended: out of memory ({self._memory} and a margin), or killed",
                "ask for less: shorter texts, fewer rows",
            ) from None
        except BaseException:  # whoever asked does not wait any more
            process.kill()
            raise
        self._idle.append(process)
        if isinstance(reply, Refused):
            raise PairmillError(reply.what)
        return reply

    async def _taken(self) -> "_Process":
        state = self.state()
        while self._idle:
            process = self._idle.pop()
            if process.state == state and process.is_alive:
                return process
            process.kill()
        return await self._started()

    async def _started(self) -> "_Process":
        state = self.state()
        # A table's folder may be a link to another disk: what it points to may be read, and nothing else beyond root.
        folders = [self._dataset.root, *(table.folder for table in self._dataset.data_tables())]
        allowed = dict.fromkeys(str(folder.resolve()) for folder in folders)
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; from pipeline.explorer.worker import main; main(*sys.argv[1:])",
            str(self._dataset.catalog.resolve()),
            tempfile.mkdtemp(dir=self._spill.name),
            self._memory,
            SPILLED,
            *allowed,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the server to hear
        )
        self._running = {process for process in self._running if process.is_alive}
        self._running.add(process := _Process(running, state))
        return process


class _Process:
    def __init__(self, running: asyncio.subprocess.Process, state: tuple[int, int]) -> None:
        self.running, self.state = running, state

    @property
    def is_alive(self) -> bool:
        return self.running.returncode is None

    async def ask(self, question: Question) -> Any:
        assert self.running.stdin
        assert self.running.stdout
        content = pickle.dumps(question, protocol=5)
        self.running.stdin.write(len(content).to_bytes(8, "big") + content)
        await self.running.stdin.drain()
        length = int.from_bytes(await self.running.stdout.readexactly(8), "big")
        content = await self.running.stdout.readexactly(length)
        return await asyncio.to_thread(pickle.loads, content)  # arrays may have millions of rows

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.running.kill()


_COLUMNS = """
SELECT v.view_name AS view, coalesce(v.comment, '') AS about, c.column_name AS name, c.data_type AS type,
       coalesce(c.comment, '') AS comment
FROM duckdb_views() AS v JOIN duckdb_columns() AS c
  ON v.database_name = c.database_name AND v.schema_name = c.schema_name AND v.view_name = c.table_name
WHERE NOT v.internal ORDER BY view, c.column_index
"""
_MACROS = """
SELECT function_name AS name, parameters, coalesce(comment, '') AS comment FROM duckdb_functions()
WHERE NOT internal AND function_type IN ('macro', 'table_macro') ORDER BY name
"""
