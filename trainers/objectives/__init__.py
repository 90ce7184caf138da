"""The objectives, one file each; importing this package registers them all."""

from trainers.objectives import (
    bitext,
    detection,
    itc,
    itm,
    lm,
    mlm,
    mrc,
    mrc_kl,
    mrfr,
    mvm,
    omvm,
    pra,
    tag_contrast,
    vse,
)
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Reading, Sizes

__all__ = [
    "OBJECTIVES",
    "Objective",
    "Outcome",
    "Reading",
    "Sizes",
    "bitext",
    "detection",
    "itc",
    "itm",
    "lm",
    "mlm",
    "mrc",
    "mrc_kl",
    "mrfr",
    "mvm",
    "omvm",
    "pra",
    "tag_contrast",
    "vse",
]
