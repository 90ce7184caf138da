"""How many parameters the systems of recipes/models have, beside what their authors say: the table of docs/models.md.

Nothing is computed and no memory taken: the models are built on the device "meta".
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.model_recipe import ModelRecipe
from trainers.network.embeddings import FeatureShape
from trainers.network.model import VisionLanguageModel

MODELS = Path("models")
PUBLISHED = Path("docs/published.toml")
TOLERANCE = 0.03
"""How far a model may be from its authors' number."""
UNKNOWN = 1
"""A piece to stand for each class's name: which one changes no size."""
HEADER = """\
| system | tiny | base: text | vision | encoder | decoder | heads | published | the same here | off by |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""


@dataclass(frozen=True)
class Published:
    """What authors say of a model's size."""

    parameters: str
    """As printed: "87.4M", "1.3B"."""
    counted: tuple[str, ...]
    """Which of our parts the number counts."""
    source: str
    without: Mapping[str, Any] | None = None
    """What it counts that is no part of a model here: `millions` of parameters, and `what` they are."""
    differs: str = ""
    """Why ours is further off than it may be, where it is."""
    shape: Mapping[str, Any] | None = None
    """Of the features that the authors' model reads."""

    @property
    def number(self) -> float:
        """What ours is held against."""
        whole = float(self.parameters[:-1]) * self._unit
        return whole - (self.without["millions"] * 1e6 if self.without else 0.0)

    @property
    def rounding(self) -> float:
        """Half of the last digit that is printed."""
        decimals = len(self.parameters[:-1].partition(".")[2])
        return 0.5 * 10.0**-decimals * self._unit

    @property
    def _unit(self) -> float:
        return {"M": 1e6, "B": 1e9}[self.parameters[-1]]


@dataclass(frozen=True)
class System:
    """One file of recipes/models, and what docs/published.toml says of it."""

    name: str
    values: Mapping[str, Any]
    shapes: Mapping[str, Mapping[str, Any]]
    """By scale, by kind of features: their shape."""
    published: Published | None

    def recipe(self, scale: str) -> ModelRecipe:
        return ModelRecipe.model_validate({**self.values, "scale": scale})

    def built(self, scale: str) -> VisionLanguageModel:
        """The model on the device "meta", with as many pieces as the recipe allows."""
        recipe = self.recipe(scale)
        shapes = {kind: _shape(shape) for kind, shape in self.shapes[scale].items()}
        shape, objects = shapes[recipe.vision.kind], shapes["region"]
        if scale == "base" and self.published and self.published.shape:
            shape = _shape(self.published.shape)
        words = tuple((UNKNOWN,) for _ in range(objects.classes))
        with torch.device("meta"):
            return VisionLanguageModel(recipe, recipe.text.vocabulary, shape, objects, words)

    @cached_property
    def base(self) -> Mapping[str, int]:
        return counts(self.built("base"))

    @cached_property
    def tiny(self) -> Mapping[str, int]:
        return counts(self.built("tiny"))

    @property
    def comparable(self) -> int:
        """Our number of what the published one counts."""
        assert self.published
        return sum(self.base[part] for part in self.published.counted)

    @property
    def off_by(self) -> float:
        """Our number over the published one, less 1."""
        assert self.published
        return self.comparable / self.published.number - 1

    @property
    def agrees(self) -> bool:
        """Whether ours is the published number within the tolerance, or within what rounding leaves of it."""
        assert self.published
        allowed = max(TOLERANCE * self.published.number, self.published.rounding)
        return abs(self.comparable - self.published.number) <= allowed


def counts(model: VisionLanguageModel) -> Mapping[str, int]:
    """Parameters that are trained, by part: momentum twins are not."""
    parts = {
        "text": model.text,
        "vision": model.vision,
        "encoder": model.encoder,
        "decoder": model.decoder,
        "heads": model.objectives,
    }
    return {name: _count(part) for name, part in parts.items()}


def systems(recipes: Path) -> Iterator[System]:
    """Those of the project's folder `recipes`, in order of name."""
    said = tomllib.loads((recipes.parent / PUBLISHED).read_text(encoding="utf-8"))
    for path in sorted((recipes / MODELS).glob("*.toml")):
        published = said["models"].get(path.stem)
        yield System(
            path.stem,
            tomllib.loads(path.read_text(encoding="utf-8")),
            said["shapes"],
            Published(**published) if published else None,
        )


def table(shown: Iterable[System]) -> str:
    """Markdown: a row a system, in millions of parameters, and the sources below."""
    rows, notes = [], []
    for system in shown:
        base = [f"{count / 1e6:.1f}" if count else "" for count in system.base.values()]
        cells = [system.name, f"{sum(system.tiny.values()) / 1e6:.1f}", *base]
        published = system.published
        if published:
            cells += [f"{published.number / 1e6:.1f}", f"{system.comparable / 1e6:.1f}", f"{system.off_by:+.1%}"]
            notes.append(f"* {system.name}: {_note(published)}")
        else:
            cells += ["", "", ""]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([HEADER, *rows, "", *notes])


def _note(published: Published) -> str:
    said = f"{published.parameters} ({published.source}), of {', '.join(published.counted)}"
    if published.without:
        said += f"; less {published.without['millions']} M, {published.without['what']}"
    return said + (f"; {published.differs}" if published.differs else "")


def _count(part: nn.Module | None) -> int:
    return 0 if part is None else sum(p.numel() for p in part.parameters() if p.requires_grad)


def _shape(values: Mapping[str, Any]) -> FeatureShape:
    rows, columns = values.get("grid", (0, 0))
    return FeatureShape(values["width"], values.get("classes", 0), (rows, columns))
