"""Many fetches at once, on an event loop in a thread of its own; whoever wants the results takes them as they come."""

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.recipe import Download
from pipeline.web.fetch import Fetched, Fetcher

_WINDOW = 4096
"""Urls that are under way or wait for their host's turn, so that a large shard costs no more memory than that."""


@dataclass(frozen=True)
class Result:
    """What became of `urls[position]`."""

    position: int
    fetched: Fetched


class Crawl:
    """Fetches `urls` from the moment it is entered; `take` gives each result once, in the order in which they are done.

    A url that waits (for its host's turn, for Retry-After, for another try) occupies nothing that others need. Results
    that are not taken hold up the fetching, so that memory is bounded. A context manager; leaving it ends what is
    under way.
    """

    def __init__(self, settings: Download, urls: Sequence[str]) -> None:
        self.settings, self.urls = settings, urls
        self._done: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        self._most_waiting = min(2 * settings.threads, 64)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="crawl", daemon=True)

    def __enter__(self) -> "Crawl":
        self._work = self._loop.create_task(self._fetch_all())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._work.cancel)
        self._thread.join()
        self._loop.close()

    def take(self) -> Result:
        """The next result. To be called as often as there are urls."""
        result = self._done.get()
        if isinstance(result, BaseException):
            raise result
        self._loop.call_soon_threadsafe(self._see_to_room)
        return result

    def done_with(self, fetched: Fetched) -> None:
        """To be called once the content of a result is no longer held: large ones wait for that."""
        self._loop.call_soon_threadsafe(self._fetcher.taken, fetched)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._work)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._done.put(error)

    async def _fetch_all(self) -> None:
        window = asyncio.Semaphore(_WINDOW)
        async with Fetcher(self.settings) as self._fetcher:
            async with asyncio.TaskGroup() as group:
                for position in range(len(self.urls)):
                    await window.acquire()
                    group.create_task(self._fetch(position, window))
            await asyncio.Event().wait()  # until it is left: results are still being taken

    async def _fetch(self, position: int, window: asyncio.Semaphore) -> None:
        try:
            fetched = await self._fetcher.fetch(self.urls[position])
        finally:
            window.release()
        self._done.put(Result(position, fetched))
        self._see_to_room()

    def _see_to_room(self) -> None:
        if self._done.qsize() < self._most_waiting:
            self._fetcher.room.set()
        else:
            self._fetcher.room.clear()
