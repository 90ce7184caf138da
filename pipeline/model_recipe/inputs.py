"""What goes in: texts, cached features, and the sources that batches are drawn from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.model_recipe.sections import Count, Positive, Section, Share


class Text(Section):
    """How texts become token sequences."""

    tokenizer: str | None = None
    """A tokenizer.json of BERT's or RoBERTa's family; without, WordPiece is trained on the train split's texts."""
    checkpoint: str | None = None
    """A folder with config.json and model.safetensors as `transformers` saves them, whose weights the model begins
    with: BERT's or RoBERTa's for what reads text, VisualBERT's or LXMERT's for the whole model; and, where no tokenizer
    is named, its tokenizer.json."""
    vocabulary: Annotated[int, Field(ge=100)] = 30522
    """Largest number of pieces; a small corpus gives fewer."""
    max_tokens: Annotated[int, Field(ge=4)] = 60
    """Longest text, [CLS] and [SEP] included; what is beyond is cut off."""
    norm: bool = True
    """Whether the sum of embeddings goes through a LayerNorm (BERT; CLIP's does not)."""
    causal: bool = False
    """Whether a token sees only those before it, always (CLIP's text tower)."""
    pool: Literal["first", "last", "mean"] = "first"
    """Which state stands for the text: [CLS] (BERT); the last token, [SEP] (CLIP's end of text); or their mean."""
    word_dropout: Share = 0.0
    """Which share of the tokens a training step does not see (Iyyer et al. 2015); the first and the last always are."""
    tags: Annotated[int, Field(ge=0)] = 0
    """At most so many tokens of object tags, the detector's class names, and their [SEP] follow the caption (Oscar); 0
    is none."""


class Augmentation(Section):
    """RandAugment (Cubuk et al. 2020): `operations` drawn for each image and step, each at `magnitude` of 30."""

    operations: Count = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class Dictionary(Section):
    """SOHO's visual dictionary: each position's feature becomes the nearest of `entries` learnt ones."""

    entries: Annotated[int, Field(ge=2)] = 2048
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Of the moving average that the entries are; it ramps up to this."""


class Resampler(Section):
    """A perceiver that makes `queries` positions of however many there are (Flamingo, KOSMOS-1)."""

    queries: Count = 64
    layers: Count = 2


class Vision(Section):
    """How the cached features become the encoder's vision positions."""

    kind: Literal["region", "grid", "patch", "pixel"]
    box: Literal[0, 4, 5, 7] = 7
    """Regions: 0 is none (VisualBERT), 4 is x1 y1 x2 y2 (LXMERT), 5 adds the area (ViLBERT), 7 adds width, height and
    area (UNITER)."""
    norms: tuple[Literal["parts", "sum"], ...] = ("parts", "sum")
    """LayerNorms over the projected feature and the place each (LXMERT), over their sum (VisualBERT), both (UNITER), or
    none (ViLT)."""
    first: Literal["none", "token", "mean"] = "none"
    """What stands before the positions and for the whole image: nothing, a learnt vector (ViT's [CLS]), or the mean of
    the features (ViLBERT's [IMG])."""
    standardize: bool = False
    """Whether each feature dimension is centred and scaled by the train split's mean and deviation first."""
    sample: Annotated[int, Field(ge=0)] = 0
    """How many positions of an image a training step sees, drawn anew each time (Pixel-BERT; ViLT, section 4.2); 0 is
    all of them."""
    feature_dropout: Share = 0.0
    """Which share of the features' dimensions a training step does not see, drawn for each position."""
    augment: Augmentation | None = None
    """Pixels: what a training step does to the pictures; validation and evaluation see them as they are. `{}` is what
    ViLT fine-tunes with."""
    dictionary: Dictionary | None = None
    resampler: Resampler | None = None

    @model_validator(mode="after")
    def _pixels_are_augmented(self) -> "Vision":
        if self.augment and self.kind != "pixel":
            raise ValueError("augment needs pixel features: the others are those of a network that has seen the image")
        return self


class Source(Section):
    """One of the corpora that batches are drawn from, by weight; each goes through epochs of its own."""

    kind: Literal["pairs", "texts", "images", "bitext"] = "pairs"
    """Texts with their images; texts alone (BERT); images alone (UNIMO); texts with their translations (MURAL), or,
    without `files`, with another text of the same image."""
    weight: Positive = 1.0
    """Its share of the steps, beside the other sources' weights."""
    dataset: str | None = None
    """Folder of another dataset than the run's own."""
    features: str | None = None
    """Name of the extractor there whose features are read; they must be by the same model as the run's."""
    captions: Literal["every", "one"] = "every"
    """Pairs: whether an epoch sees all texts of an image, or one, drawn anew in each."""
    files: tuple[str, ...] = ()
    """Texts and bitext from lists (.txt, .jsonl, .csv, .tsv, .parquet; paths, globs or URLs), not from a dataset."""
    text_column: str = "text"
    translation_column: str = "translation"
    held_out: Share = 0.01
    """Which share of the files' texts, told by their digests, are for validation and not for training."""

    @model_validator(mode="after")
    def _consistent(self) -> "Source":
        if self.files and self.kind not in ("texts", "bitext"):
            raise ValueError(f"files hold texts or bitext, not {self.kind}")
        if self.files and self.dataset:
            raise ValueError("give either files or a dataset")
        if self.captions == "one" and self.kind != "pairs":
            raise ValueError('captions = "one" is about pairs')
        return self

    @property
    def has_text(self) -> bool:
        return self.kind != "images"

    @property
    def has_vision(self) -> bool:
        return self.kind in ("pairs", "images")
