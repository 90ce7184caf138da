"""Work on an open page: it ends when the page is left, and where a newer call makes it pointless."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from nicegui import Client, background_tasks, ui

_under_way: WeakKeyDictionary[Client, set[asyncio.Task[Any]]] = WeakKeyDictionary()


@contextmanager
def ending_with_page() -> Iterator[None]:
    """The task that is within ends without a word when its page is left: nobody sees what it would still build."""
    client, task = ui.context.client, asyncio.current_task()
    assert task
    if client not in _under_way:
        tasks = _under_way[client] = set()
        client.on_delete(lambda: [each.cancel() for each in tasks])
    is_outermost = task not in _under_way[client]
    _under_way[client].add(task)
    try:
        yield
    except (asyncio.CancelledError, RuntimeError):
        if not is_outermost or not client.is_deleted:
            raise
    finally:
        if is_outermost:
            _under_way[client].discard(task)


class Latest:
    """Of the tasks that are started here one after the other, only the last one is carried through.

    What is built while a task waits belongs to the page on which it was started, and ends with it.
    """

    def __init__(self) -> None:
        self._slot = ui.context.slot
        self._task: Any = None

    def start(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        self.stop()
        self._task = background_tasks.create(_carried(work, arguments), name="latest", context=self._slot)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()


async def _carried(work: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]) -> None:
    with ending_with_page():
        await work(*arguments)
