"""One `[train.<run>]` section, whole."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.model_recipe.architecture import Decoder, Encoder
from pipeline.model_recipe.inputs import Source, Text, Vision
from pipeline.model_recipe.objectives import Objectives
from pipeline.model_recipe.schedule import Batches, Checkpoints, EarlyStop, Optimizer
from pipeline.model_recipe.sections import Count, Fraction, Section, laid_over


class ModelRecipe(Section):
    """One training: which features, which model, which objectives, how long."""

    features: str
    """Name of the extractor, in `[extract]`, whose features are read."""
    objects: str | None = None
    """Name of a region extractor whose boxes and classes supervise (detection, omvm, pra) or are the tags."""
    sources: tuple[Source, ...] = (Source(),)
    scale: str = "base"
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Count
    text: Text = Text()
    vision: Vision
    encoder: Encoder
    decoder: Decoder | None = None
    objectives: Objectives
    mixing: Literal["draw", "sum", "joint"] = "sum"
    """One objective a step, drawn by weight (UNITER); the weighted sum of all, each with an input of its own (ViLT,
    METER); or the sum over one input that all of them have corrupted (ViLBERT, LXMERT)."""
    batch: Batches
    optimizer: Optimizer
    validations: Annotated[int, Field(ge=0)] = 5
    """How many times, evenly spread, the losses are taken on the validation split."""
    ema: Fraction | None = None
    """What a moving average of the weights keeps of itself at each step; then the average is validated and saved."""
    early_stop: EarlyStop | None = None
    checkpoints: Checkpoints = Checkpoints()
    compile: bool = False
    """Whether `torch.compile` makes the blocks' kernels: minutes at the start, and a C++ compiler on a CPU."""

    def parts(self, source: Source) -> frozenset[str]:
        """What the batches of a source have: of "text", "vision", "objects", "tags", "translation"."""
        found = {
            "pairs": {"text", "vision"},
            "texts": {"text"},
            "images": {"vision"},
            "bitext": {"text", "translation"},
        }
        parts = found[source.kind]
        if "vision" in parts and self.objects:
            parts |= {"objects"}
        if parts >= {"text", "vision"} and self.text.tags:
            parts |= {"tags"}
        return frozenset(parts)

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
    def _stops_by_validations(self) -> "ModelRecipe":
        if self.early_stop and not self.validations:
            raise ValueError("early_stop judges by validations, and there are to be none")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "ModelRecipe":
        objectives, vision = self.objectives, self.vision
        if (objectives.mrc or objectives.mrc_kl or objectives.mrfr) and vision.kind != "region":
            raise ValueError("mrc, mrc_kl and mrfr need region features")
        placed = [name for name in ("mrc", "mrc_kl", "mrfr", "mvm", "omvm", "pra") if getattr(objectives, name)]
        if vision.resampler and placed:
            raise ValueError(f"after a resampler no position is one of the image's, and {', '.join(placed)} need them")
        if (objectives.omvm or objectives.pra) and vision.kind not in ("grid", "patch"):
            raise ValueError(
                "omvm and pra look for objects among the cells of a grid: they need grid or patch features"
            )
        masking = [settings for settings in (objectives.mrc, objectives.mrc_kl, objectives.mrfr) if settings]
        if vision.standardize and not all(settings.mask_embedding for settings in masking):
            raise ValueError(
                "mask_embedding = false puts zeros for features as stored, which with vision.standardize are no "
                "zeros to the model: leave one of them out"
            )
        if objectives.mvm and not vision.dictionary:
            raise ValueError("mvm predicts the entries of vision.dictionary")
        supervised = [name for name in ("detection", "omvm", "pra") if getattr(objectives, name)]
        if supervised and not self.objects:
            raise ValueError(f"{', '.join(supervised)} learn from a detector's boxes: name its extractor in `objects`")
        if objectives.detection and not (self.decoder and self.decoder.queries):
            raise ValueError("detection needs a decoder with queries")
        if objectives.lm and objectives.lm.by == "decoder" and not self.decoder:
            raise ValueError('lm by = "decoder" needs a decoder')
        if objectives.bitext and not objectives.itc:
            raise ValueError("bitext compares in itc's joint space: name itc as well")
        if objectives.tag_contrast and not self.text.tags:
            raise ValueError("tag_contrast contrasts tags: say in text.tags how many tokens of them there may be")
        if self.mixing == "joint" and objectives.itm and (objectives.itm.hard or objectives.tag_contrast):
            raise ValueError(
                'mixing = "joint" has one input, recombined once: with itm.hard, which first asks how alike its parts '
                "are, or with both itm and tag_contrast, it has to be another mixing"
            )
        if self.text.tags and vision.kind != "region" and not self.objects:
            raise ValueError("text.tags are a detector's class names: name its extractor in `objects`")
        return self
