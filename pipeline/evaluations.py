"""`runs/<name>/evaluation.json`: what `evaluate` found a run to be worth. Its form, and the one reader of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset

FILE = "evaluation.json"

COUNTS = ("texts", "images")
Number = Annotated[int, Field(ge=0, le=2**53)] | Annotated[float, Field(ge=0, le=1)]
"""How many, or a share of them."""


class _Form(BaseModel):
    """Other fields may stand beside those named here: a newer version wrote them."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


class TextQuery(_Form):
    """A text, and the keys of images: the best, best first, and all that are right."""

    text: str
    top: list[str]
    right: list[str]


class ImageQuery(_Form):
    """An image's key, and texts: the best, best first, and all that are right."""

    image: str
    top: list[str]
    right: list[str]


class Evaluation(_Form):
    """One run on the test split."""

    key: str
    """Of the stage: what the run was evaluated on."""
    retrieval: dict[str, Number]
    """As `trainers.tasks.retrieval` gives it: shares in [0, 1], and how many texts and images there were."""
    retrieval_by_cosine: dict[str, Number] | None = None
    """What it would be without the matching head, where one ranks the best again."""
    examples: list[TextQuery] = []
    image_examples: list[ImageQuery] = []
    """Evaluations of before there were any lack them."""
    seconds: float = Field(ge=0)

    @field_validator("retrieval")
    @classmethod
    def _is_whole(cls, found: dict[str, Number]) -> dict[str, Number]:
        """Chance at each K and the numbers of texts and images came later, and nobody has to have them."""
        wanted = [f"{way}_r{cut}" for way in ("t2i", "i2t") for cut in (1, 5, 10)]
        if absent := [name for name in [*wanted, "chance_r10"] if name not in found]:
            raise ValueError(f"without {', '.join(absent)}")
        if mistaken := [name for name, value in found.items() if name not in COUNTS and value > 1]:
            raise ValueError(f"no shares: {', '.join(mistaken)}")
        return found


def read(path: Path) -> Evaluation | None:
    """None where the file is missing or no evaluation: `evaluate` makes it anew."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def by_run(dataset: "Dataset") -> dict[str, Evaluation]:
    """Of the finished runs that have one."""
    found = {run: read(dataset.run(run).folder / FILE) for run in dataset.runs()}
    return {run: evaluation for run, evaluation in found.items() if evaluation is not None}


def unread(dataset: "Dataset") -> list[str]:
    """The finished runs whose evaluation is there and cannot be read."""
    paths = {run: dataset.run(run).folder / FILE for run in dataset.runs()}
    return [run for run, path in paths.items() if path.exists() and read(path) is None]
