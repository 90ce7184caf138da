"""Names to things that a recipe can name."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Registry(Generic[Thing]):
    """`@registry.add("name")` puts a thing in; a second one of the same name raises ValueError."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._things: dict[str, Thing] = {}

    def add(self, name: str) -> Callable[[Thing], Thing]:
        def put(thing: Thing) -> Thing:
            if name in self._things:
                raise ValueError(f"there are two {self.what}s named {name!r}")
            self._things[name] = thing
            return thing

        return put

    def __getitem__(self, name: str) -> Thing:
        if name not in self._things:
            raise KeyError(f"there is no {self.what} {name!r}; there are: {', '.join(self._things)}")
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)
