"""How long, in which steps and at which rate."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.model_recipe.sections import Count, Positive, Section, Share


class Batches(Section):
    """How an epoch is cut: into batches of `size` pairs, or as many as fit into `tokens` padded positions."""

    size: Annotated[int, Field(ge=2)] | None = None
    tokens: Annotated[int, Field(ge=64)] | None = None
    pool_groups: Count = 512
    """How many row groups of the feature store are shuffled together."""
    accumulate: Count = 1
    """How many batches' gradients make one step, their mean: a larger batch than fits into memory. A contrast still
    sees one batch at a time."""

    @model_validator(mode="after")
    def _one(self) -> "Batches":
        if (self.size is None) == (self.tokens is None):
            raise ValueError("give either size or tokens")
        return self


class Optimizer(Section):
    """AdamW with a linear warm-up, then a decay to the last step; no weight decay on biases and LayerNorms."""

    learning_rate: Positive
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps."""
    decay: Literal["linear", "cosine"] = "linear"
    """From `learning_rate` on: in a line (BERT), or along half a cosine (Loshchilov and Hutter 2017)."""
    last: Share = 0.0
    """What the decay ends at, as a share of `learning_rate` (ALBEF: 0.1)."""
    heads: Positive = 1.0
    """A factor to the rate of the objectives' heads (METER: 5), as `learning_rate_scale` is to that of blocks."""


class EarlyStop(Section):
    """Ends a training whose validation does not get better, with the weights of its best one."""

    patience: Count
    """So many validations without a new best end it."""
    metric: str = "loss"
    """A name from the curves, without "validation/": loss is the weighted sum of the objectives', loss/itm is one's."""
    best: Literal["lowest", "highest"] | None = None
    """By default what the metric's name says: recalls and accuracies are best when highest, all else when lowest."""

    @property
    def highest(self) -> bool:
        rises = self.metric.startswith(("t2i_r", "i2t_r", "accuracy"))
        return rises if self.best is None else self.best == "highest"


class Checkpoints(Section):
    """How often a training writes down where it stands. What it learns does not depend on this."""

    keep: Count = 2
    """So many of the newest stay: where one is damaged, the training carries on from the one before."""
    seconds: Annotated[float, Field(ge=0)] = 20.0
    """Between two; at least 20 times as long as the last one took to write."""
