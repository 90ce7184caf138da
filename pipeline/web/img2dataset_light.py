"""The parts of img2dataset that do a shard's work, without what its package imports besides.

`import img2dataset` brings Ray, torch, pandas and wandb into every worker: 600 MB and 5 seconds or more, for nothing
that a shard needs. Its modules are imported here one by one, past its `__init__`, and without those.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def _package_without_init(name: str) -> ModuleType:
    found = importlib.util.find_spec(name)
    assert found is not None
    package = ModuleType(name)
    package.__path__ = list(found.submodule_search_locations or ())
    return package


@contextmanager
def _standing_in(modules: dict[str, ModuleType | None]) -> Iterator[None]:
    """Modules as given (None: not there) while the block runs, but for those that are loaded already."""
    mine: dict[str, Any] = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del sys.modules[name]


os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask the network whether it is the newest
with _standing_in({"img2dataset": _package_without_init("img2dataset"), "wandb": ModuleType("wandb"), "torch": None}):
    downloader: Any = importlib.import_module("img2dataset.downloader")
    resizer: Any = importlib.import_module("img2dataset.resizer")
    blurrer: Any = importlib.import_module("img2dataset.blurrer")
