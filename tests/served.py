"""What the made-up corpus looks like once it is served."""

from dataclasses import dataclass
from pathlib import Path

import corpus

from pipeline.demo.server import Faults

FAULTS = Faults(seed=3, missing=0.06, slow=0.05, slow_seconds=0.05, stalled=0.03, stalled_seconds=60)


@dataclass(frozen=True)
class Web:
    """The corpus, served: its lists, its recipe."""

    corpus: corpus.Corpus
    folder: Path
    base_url: str
    lists: list[Path]
    recipe: Path
