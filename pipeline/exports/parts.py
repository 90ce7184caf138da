"""What a target is: how one part of a split is written, and what is written once all parts are there."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.exports.images import Image
from pipeline.exports.staging import Part, Plan

Add = Callable[[Image], None]
"""Writes one image; they come in order of key."""


class Target(Protocol):
    """A format. `folder` is the one that is being filled."""

    def part(self, folder: Path, part: Part, plan: Plan) -> AbstractContextManager[Add]:
        """Open what the part's images go to; all of it is written when the block ends. Workers call this, at once."""

    def finish(self, folder: Path, plan: Plan) -> None:
        """Write what speaks of the whole."""
