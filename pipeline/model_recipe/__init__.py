"""The model part of a recipe: what one `[train.<run>]` section says. A model of the literature is such a section.

The values that change with the size of the machine stand in `[scales.<name>]` tables, of which `scale` picks one; a
value that stands outside of them (in the model's file or in the recipe that uses it) is laid over the picked table.
"""

from pipeline.model_recipe.architecture import ALL_SWITCHES, Blocks, Crossing, Decoder, Encoder, Switch, Width
from pipeline.model_recipe.inputs import Augmentation, Dictionary, Resampler, Source, Text, Vision
from pipeline.model_recipe.objectives import (
    Contrast,
    Detection,
    Hinge,
    Joint,
    LanguageModelling,
    MaskedObjects,
    MaskedRegions,
    MaskedTokens,
    MaskedVision,
    Matching,
    Momentum,
    Objectives,
    PhraseRegions,
    RegionRegression,
    TagContrast,
    Translations,
    Weighted,
)
from pipeline.model_recipe.schedule import Batches, Checkpoints, EarlyStop, Optimizer
from pipeline.model_recipe.sections import Section, laid_over
from pipeline.model_recipe.whole import ModelRecipe

__all__ = [
    "ALL_SWITCHES",
    "Augmentation",
    "Batches",
    "Blocks",
    "Checkpoints",
    "Contrast",
    "Crossing",
    "Decoder",
    "Detection",
    "Dictionary",
    "EarlyStop",
    "Encoder",
    "Hinge",
    "Joint",
    "LanguageModelling",
    "MaskedObjects",
    "MaskedRegions",
    "MaskedTokens",
    "MaskedVision",
    "Matching",
    "ModelRecipe",
    "Momentum",
    "Objectives",
    "Optimizer",
    "PhraseRegions",
    "RegionRegression",
    "Resampler",
    "Section",
    "Source",
    "Switch",
    "TagContrast",
    "Text",
    "Translations",
    "Vision",
    "Weighted",
    "Width",
    "laid_over",
]
