"""A text file that the recipe names, one entry a line: read whole, known by its content."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PairmillError


@dataclass(frozen=True)
class EntryFile:
    """A file of UTF-8 lines behind a key of the recipe.

    Instances go to worker processes and read the file there anew; a file that changed in the meantime is an error.
    """

    path: Path
    key: str
    digest: str
    """sha256 of the content."""

    @classmethod
    def named(cls, path: str, key: str) -> "EntryFile":
        """The file at a path that the recipe's `key` names. Raises PairmillError if it cannot be read."""
        whole = Path(path).absolute()
        return cls(whole, key, hashlib.sha256(_content(whole, key)).hexdigest())

    def lines(self) -> list[tuple[int, str]]:
        """(line number, entry) of the lines that hold more than blanks, without the blanks around them."""
        content = _content(self.path, self.key)
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise PairmillError(f"{self.path} changed while it was in use", "run the stage again")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise PairmillError(
                f"{self.path}, line {line}: not UTF-8", f"save the file of {self.key} as UTF-8"
            ) from None
        # Not splitlines(): an entry may hold what Unicode takes for the end of a line.
        numbered = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
        return [(number, line) for number, line in numbered if line]


def _content(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PairmillError(
            f"cannot read {path}: {error.strerror}", f"correct the path in the recipe's {key}"
        ) from None
