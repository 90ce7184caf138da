"""The model part of a recipe: what one `[train.<run>]` section says. A model of the literature is such a section.

The values that change with the size of the machine stand in `[scales.<name>]` tables, of which `scale` picks one; a
value that stands outside of them (in the model's file or in the recipe that uses it) is laid over the picked table.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Modality = Literal["text", "vision"]
Switch = Literal["text-text", "text-vision", "vision-text", "vision-vision"]
"""Which positions look at which: "text-vision" lets the text's queries attend to the vision's keys."""
ALL_SWITCHES: frozenset[str] = frozenset(("text-text", "text-vision", "vision-text", "vision-vision"))

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Text(Section):
    """WordPiece over the corpus, trained on the train split's texts."""

    vocabulary: Annotated[int, Field(ge=100)] = 30522
    """Largest number of pieces; a small corpus gives fewer."""
    max_tokens: Annotated[int, Field(ge=4)] = 60
    """Longest text, [CLS] and [SEP] included; what is beyond is cut off."""


class Augmentation(Section):
    """RandAugment (Cubuk et al. 2020): `operations` drawn for each image and step, each at `magnitude` of 30."""

    operations: Count = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class Vision(Section):
    """How the cached features become the encoder's vision positions."""

    kind: Literal["region", "grid", "patch", "pixel"]
    box: Literal[4, 5, 7] = 7
    """Regions: 4 is x1 y1 x2 y2 (LXMERT), 5 adds the area (ViLBERT), 7 adds width, height and area (UNITER)."""
    standardize: bool = False
    """Whether each feature dimension is centred and scaled by the train split's mean and deviation first."""
    sample: Annotated[int, Field(ge=0)] = 0
    """How many positions of an image a training step sees, drawn anew each time (Pixel-BERT; ViLT, section 4.2); 0 is
    all of them."""
    augment: Augmentation | None = None
    """Pixels: what a training step does to the pictures; validation and evaluation see them as they are. `{}` is what
    ViLT fine-tunes with."""

    @model_validator(mode="after")
    def _pixels_are_augmented(self) -> "Vision":
        if self.augment and self.kind != "pixel":
            raise ValueError("augment needs pixel features: the others are those of a network that has seen the image")
        return self


class Blocks(Section):
    """One row of the encoder's table: `repeat` equal blocks.

    A block is a sequence of attention sub-layers and one feed-forward layer; each sub-layer is a list of switches.
    A modality whose queries no switch turns on passes through unchanged.
    """

    repeat: Count = 1
    attention: tuple[tuple[Switch, ...], ...] = Field(min_length=1)
    weights: Literal["shared", "separate"]
    """Whether text and vision go through the same weights."""
    learning_rate_scale: Positive = 1.0

    @model_validator(mode="after")
    def _some_switch(self) -> "Blocks":
        if not all(self.attention):
            raise ValueError("each attention sub-layer needs at least one switch")
        return self


class Encoder(Section):
    """The stack of blocks. Sizes as in BERT: `hidden` wide, `feedforward` wide inside, `heads` heads."""

    hidden: Annotated[int, Field(ge=8)]
    heads: Count
    feedforward: Count
    dropout: Share = 0.1
    initializer: Positive = 0.02
    """Standard deviation of the first weights; BERT's by default, which suits its width of 768."""
    norm: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum (BERT), or before each sub-layer and once at the end (GPT-2, ViT, CLIP)."""
    blocks: tuple[Blocks, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> "Encoder":
        if self.hidden % self.heads:
            raise ValueError("hidden must be a multiple of heads")
        return self


class Weighted(Section):
    """An objective's place in the mix: its share of the draws under "draw", its factor under "sum"."""

    weight: Positive = 1.0


class MaskedTokens(Weighted):
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15


class MaskedRegions(Weighted):
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    co_mask_iou: Annotated[float, Field(gt=0, le=1)] = 0.4
    """A region that overlaps a masked one by more than this is masked too (InterBERT)."""


class Matching(Weighted):
    pool: Literal["text", "concat", "product"] = "text"
    """What the head sees: [CLS] (UNITER); [CLS] and the vision's mean state side by side (METER); or the product of
    the text's and the vision's mean states (ViLBERT multiplies their first states)."""
    mismatches: Annotated[int, Field(ge=0)] = 0
    """0: half of the batch's pairs are mismatched, the others stay. k: all stay, and each brings k mismatches."""


class Contrast(Weighted):
    width: Count = 512
    """Dimensions of the joint space."""


class Objectives(Section):
    """The weight table. An objective that is not named takes no part."""

    mlm: MaskedTokens | None = None
    mrc_kl: MaskedRegions | None = None
    mrfr: MaskedRegions | None = None
    itm: Matching | None = None
    itc: Contrast | None = None

    @property
    def chosen(self) -> dict[str, Weighted]:
        """The named objectives and their settings, in the order of this table."""
        return {name: settings for name in type(self).model_fields if (settings := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _some(self) -> "Objectives":
        if not self.chosen:
            raise ValueError("name at least one objective")
        return self


class Batches(Section):
    """How an epoch is cut: into batches of `size` pairs, or as many as fit into `tokens` padded positions."""

    size: Annotated[int, Field(ge=2)] | None = None
    tokens: Annotated[int, Field(ge=64)] | None = None
    pool_groups: Count = 64
    """How many row groups of the feature store are shuffled together."""

    @model_validator(mode="after")
    def _one(self) -> "Batches":
        if (self.size is None) == (self.tokens is None):
            raise ValueError("give either size or tokens")
        return self


class Optimizer(Section):
    """AdamW with linear warm-up and linear decay to zero; no decay on biases and LayerNorms."""

    learning_rate: Positive
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps."""


class ModelRecipe(Section):
    """One training: which features, which model, which objectives, how long."""

    features: str
    """Name of the extractor, in `[extract]`, whose features are read."""
    scale: str = "base"
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Count
    text: Text = Text()
    vision: Vision
    encoder: Encoder
    objectives: Objectives
    mixing: Literal["draw", "sum"] = "sum"
    """One objective a step, drawn by weight (UNITER), or the weighted sum of all (ViLT, METER)."""
    batch: Batches
    optimizer: Optimizer
    validations: Annotated[int, Field(ge=0)] = 5
    """How many times, evenly spread, the losses are taken on the validation split."""

    @model_validator(mode="before")
    @classmethod
    def _at_scale(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "scales" not in values:
            return values
        scales = values["scales"]
        scale = values.get("scale", "base")
        if not isinstance(scales, Mapping) or scale not in scales:
            raise ValueError(f"there is no scale {scale!r}; allowed: {', '.join(map(str, scales))}")
        return laid_over(scales[scale], {key: value for key, value in values.items() if key != "scales"})

    @model_validator(mode="after")
    def _consistent(self) -> "ModelRecipe":
        fused = any(
            "text-vision" in sub or "vision-text" in sub for row in self.encoder.blocks for sub in row.attention
        )
        if self.objectives.itc and fused:
            raise ValueError("itc needs an encoder without text-vision and vision-text switches")
        if (self.objectives.mrc_kl or self.objectives.mrfr) and self.vision.kind != "region":
            raise ValueError("mrc_kl and mrfr need region features")
        return self


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, table by table; a list or a value replaces the one below it."""
    laid = dict(below)
    for key, value in above.items():
        under = laid.get(key)
        laid[key] = laid_over(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return laid
