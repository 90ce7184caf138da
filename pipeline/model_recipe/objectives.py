"""The objectives' settings, and the table of those that take part."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.model_recipe.sections import Count, Fraction, Positive, Section, Share


class Weighted(Section):
    """An objective's place in the mix: its share of the draws under "draw", its factor otherwise."""

    weight: Positive = 1.0


class MaskedTokens(Weighted):
    probability: Fraction = 0.15
    unit: Literal["token", "word", "span"] = "token"
    """What is masked or not as a whole: each piece by itself (BERT), all pieces of a word (ViLT, METER), or one run of
    neighbouring words in each caption (InterBERT)."""


class LanguageModelling(Weighted):
    by: Literal["encoder", "decoder"] = "encoder"
    """What writes the text: the encoder under a causal mask (UNIMO, BLIP, KOSMOS-1), or the decoder (OFA, E2E-VLP)."""
    prefix: Literal["none", "random"] = "none"
    """Which beginning of the text is given and not written: none, or one whose length is drawn for each text."""
    smoothing: Share = 0.0
    """Label smoothing: the share of a target's probability that all pieces divide among them (BLIP: 0.1)."""


class MaskedRegions(Weighted):
    probability: Fraction = 0.15
    co_mask_iou: Annotated[float, Field(gt=0, le=1)] = 0.4
    """A region that overlaps a masked one by more than this is masked too (InterBERT); 1 is no overlap."""
    zeroed: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of the masked regions that lose their feature (UNITER: all; ViLBERT 0.9, LXMERT 0.8)."""
    swapped: Share = 0.0
    """The share that get another region's of the batch instead (LXMERT: 0.1). The rest keep theirs."""
    mask_embedding: bool = True
    """Whether a learnt embedding stands in for a feature that was lost (UNITER); otherwise zeros do."""


class RegionRegression(MaskedRegions):
    loss: Literal["l2", "smooth_l1"] = "l2"
    """Squared error (UNITER), or Huber's with delta 1 (LXMERT)."""
    head: Literal["tied", "own"] = "tied"
    """Whose the last layer's weights are: the input projection's, transposed (UNITER), or the head's (LXMERT)."""


class MaskedVision(Weighted):
    """SOHO's masking of the visual dictionary's entries."""

    probability: Fraction = 0.15
    """Of each entry that an image has; all of the image's positions with that entry are masked together."""


class MaskedObjects(Weighted):
    """KD-VLP's object-masked vision modelling."""


class PhraseRegions(Weighted):
    """KD-VLP's phrase-region alignment."""

    longest: Count = 2
    """Words of a phrase."""
    temperature: Positive = 0.1
    """By which cosines are divided before they become probabilities."""


class Detection(Weighted):
    """E2E-VLP's objects by set matching."""


class Matching(Weighted):
    pool: Literal["text", "concat", "firsts", "product"] = "text"
    """What the head sees: the state that stands for the text (UNITER: [CLS]); those of text and vision side by side
    (METER), or multiplied (ViLBERT); or the product of the text's and the vision's mean states."""
    dense: Literal["together", "each", "none"] = "together"
    """Where the layer before the head stands: over what was put together; over each modality's state before that
    (ViLBERT, METER); or nowhere (ALBEF, BLIP)."""
    activation: Literal["tanh", "relu"] = "tanh"
    """That layer's (ViLBERT: relu)."""
    width: Count | None = None
    """That layer's (ViLBERT: 1024); by default as wide as the encoder."""
    mismatches: Annotated[int, Field(ge=0)] = 0
    """0: half of the batch's pairs are mismatched, the others stay. k: all stay, and each brings k mismatches."""
    hard: bool = False
    """Instead, each pair stays and brings two mismatches that itc finds alike: another image and another text, drawn
    by how similar they are (ALBEF, VLMo, BLIP)."""
    alignment: Annotated[float, Field(ge=0)] = 0.0
    """The factor of word-region alignment by optimal transport (UNITER, ViLT: 0.1); 0 is none."""
    rerank: Annotated[int, Field(ge=0)] = 128
    """Retrieval, where itc ranks as well: the head judges the so many best of each ranking again (ALBEF: 128 on
    Flickr30k, 256 on COCO); 0 leaves it to itc."""

    @model_validator(mode="after")
    def _one_kind_of_mismatch(self) -> "Matching":
        if self.hard and self.mismatches:
            raise ValueError("hard draws two mismatches a pair: leave mismatches out")
        return self


class Momentum(Section):
    """Keys from twins of the towers that follow them slowly (MoCo, ALBEF)."""

    decay: Fraction = 0.995
    """What a twin keeps of itself at each step."""
    queue: Annotated[int, Field(ge=0)] = 65536
    """How many of the keys of former batches are negatives as well, the newest. More than an epoch has would make a
    pair a negative of itself."""
    soft: Annotated[float, Field(ge=0, le=1)] = 0.4
    """The part of the targets that is what the twins think; the rest is the true pairs (BriVL: 0)."""
    ramp: Annotated[int, Field(ge=0)] = 0
    """Steps over which `soft` rises to what it is (ALBEF: the first epoch)."""


class Joint(Weighted):
    """A space in which texts and images lie, and are compared."""

    at: Literal["towers", "end"] = "towers"
    """Which states are projected to it: those after the blocks in which each modality is alone (ALBEF), or those after
    the whole stack, in which each goes without the other (VLMo, BLIP)."""
    width: Count = 512
    """Its dimensions."""
    bias: bool = False
    """Whether the projections have one (ALBEF, BLIP; CLIP's have none)."""


class Contrast(Joint):
    """InfoNCE."""

    temperature: Positive = 0.07
    """At first (CLIP, ALBEF: 0.07; ALIGN: 1)."""
    learnt: bool = True
    bounds: tuple[Positive, Positive] = (0.01, 100.0)
    """Between which a learnt temperature stays (CLIP: from 0.01; ALBEF: 0.001 to 0.5)."""
    smoothing: Share = 0.0
    """Label smoothing (ALIGN: 0.1)."""
    momentum: Momentum | None = None


class Hinge(Joint):
    """VSE++."""

    width: Count = 1024
    margin: Positive = 0.2
    negatives: Literal["hardest", "all"] = "hardest"
    """Whether only the most similar negative counts (VSE++) or the sum over all (VSE0)."""


class Translations(Weighted):
    """MURAL's contrast between translations."""

    temperature: Positive | None = None
    """A learnt temperature of its own, at first; None shares itc's."""


class TagContrast(Weighted):
    """Oscar's contrast between an image's tags and another's."""

    classes: Literal[2, 3] = 2
    """2: are the tags the image's own (Oscar)? 3: is all well, is it the caption that is another's, or are it the tags
    (VinVL)?"""


class Objectives(Section):
    """The weight table. An objective that is not named, or is false, takes no part."""

    mlm: MaskedTokens | None = None
    lm: LanguageModelling | None = None
    mrc: MaskedRegions | None = None
    mrc_kl: MaskedRegions | None = None
    mrfr: RegionRegression | None = None
    mvm: MaskedVision | None = None
    omvm: MaskedObjects | None = None
    pra: PhraseRegions | None = None
    detection: Detection | None = None
    itm: Matching | None = None
    itc: Contrast | None = None
    vse: Hinge | None = None
    bitext: Translations | None = None
    tag_contrast: TagContrast | None = None

    @model_validator(mode="before")
    @classmethod
    def _switched_off(cls, values: Any) -> Any:
        """`false` takes out what the model's file names."""
        if not isinstance(values, Mapping):
            return values
        return {name: settings for name, settings in values.items() if settings is not False}

    @property
    def chosen(self) -> dict[str, Weighted]:
        """The named objectives and their settings, in the order of this table."""
        return {name: settings for name in type(self).model_fields if (settings := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _some(self) -> "Objectives":
        if not self.chosen:
            raise ValueError("name at least one objective")
        if self.itm and self.itm.hard and not self.itc:
            raise ValueError("itm draws hard mismatches by itc's similarities: name itc as well")
        return self
