"""Peers' packages, in an environment of their own: none of this project's is changed for them."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path


def python_with(folder: Path, packages: Sequence[str], first: Callable[[Path], object] | None = None) -> Path:
    """The Python of the environment `folder`, made with `packages` where it is missing; `first` is then called with it
    once, for what a peer fetches or compiles at its first use and is not to be measured for.

    torch comes in the version that is installed here: it is on this disk already, and both sides compute alike.
    """
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        wanted = [*packages, f"torch=={version('torch').partition('+')[0]}"]
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *wanted], check=True)
        if first:
            first(python)
        ready.touch()
    return python
