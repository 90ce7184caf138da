"""Work that a newer call makes pointless."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import background_tasks, ui


class Latest:
    """Of the tasks that are started here one after the other, only the last one is carried through.

    What is built while a task waits belongs to the page on which it was started, and ends with it.
    """

    def __init__(self) -> None:
        self._slot = ui.context.slot
        self._task: Any = None
        ui.context.client.on_delete(self.stop)

    def start(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        self.stop()
        self._task = background_tasks.create(work(*arguments), name="latest", context=self._slot)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
