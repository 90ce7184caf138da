"""The network as data: a table of blocks with attention switches, and a decoder."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.model_recipe.sections import Count, Modality, Positive, Section, Share

Switch = Literal["text-text", "text-vision", "vision-text", "vision-vision"]
"""Which positions look at which: "text-vision" lets the text's queries attend to the vision's keys."""
ALL_SWITCHES: frozenset[str] = frozenset(("text-text", "text-vision", "vision-text", "vision-vision"))
Owned = Literal["shared", "separate"]
Norm = Literal["post", "pre"]


class Blocks(Section):
    """One row of the encoder's table: `repeat` equal blocks.

    A block is a sequence of attention sub-layers and one feed-forward layer; each sub-layer is a list of switches.
    A modality whose queries no switch turns on passes through unchanged, and so does a sub-layer that looks at a
    modality that is absent.
    """

    repeat: Count = 1
    attention: tuple[tuple[Switch, ...], ...] = Field(min_length=1)
    weights: Owned
    """Whether text and vision go through the same weights."""
    attention_weights: tuple[Owned, ...] = ()
    """The same for each attention sub-layer, where they differ (LXMERT's cross-attention is shared, the rest not)."""
    feedforward_weights: Literal["shared", "separate", "experts"] | None = None
    """The same for the feed-forward layer. Experts are separate ones, and a third for both modalities together, which
    stands in where both are present (VLMo's top layers)."""
    decoding: Literal["same", "own"] = "same"
    """Whether a text that is written token by token goes through self-attention weights of its own (BLIP)."""
    norm: Norm | None = None
    """Where it differs from the encoder's."""
    learning_rate_scale: Positive = 1.0

    @model_validator(mode="after")
    def _some_switch(self) -> "Blocks":
        if not all(self.attention):
            raise ValueError("each attention sub-layer needs at least one switch")
        if self.attention_weights and len(self.attention_weights) != len(self.attention):
            raise ValueError("attention_weights names one for each attention sub-layer")
        return self

    def attention_owned(self, sublayer: int) -> Owned:
        return self.attention_weights[sublayer] if self.attention_weights else self.weights


class Width(Section):
    """The vision stream's own width, where it is not the text's (ViLBERT, CLIP)."""

    hidden: Annotated[int, Field(ge=8)]
    heads: Count
    feedforward: Count


class Crossing(Section):
    """The width of attention between streams of two widths (ViLBERT's bi-attention)."""

    width: Count
    heads: Count


class Encoder(Section):
    """The stack of blocks. Sizes as in BERT: `hidden` wide, `feedforward` wide inside, `heads` heads."""

    hidden: Annotated[int, Field(ge=8)]
    heads: Count
    feedforward: Count
    vision: Width | None = None
    cross: Crossing | None = None
    dropout: Share = 0.1
    attention_dropout: Share | None = None
    """Of the attention's probabilities; by default as `dropout`."""
    initializer: Positive = 0.02
    """Standard deviation of the first weights; BERT's by default, which suits its width of 768."""
    norm: Norm = "post"
    """LayerNorm after each residual sum (BERT), or before each sub-layer and once at the end (GPT-2, ViT, CLIP)."""
    epsilon: Positive = 1e-12
    """The LayerNorms'."""
    causal: bool = False
    """Whether a position sees only itself and those before it; the image stands before the text (KOSMOS-1)."""
    checkpointing: bool = False
    """Compute each block's activations again in the backward pass: less memory, a third more time."""
    blocks: tuple[Blocks, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> "Encoder":
        widths = [(self.hidden, self.heads)]
        if self.vision:
            widths.append((self.vision.hidden, self.vision.heads))
        if self.cross:
            widths.append((self.cross.width, self.cross.heads))
        if any(hidden % heads for hidden, heads in widths):
            raise ValueError("hidden must be a multiple of heads")
        if self.vision and self.vision.hidden != self.hidden:
            self._two_widths()
        return self

    def _two_widths(self) -> None:
        for row in self.blocks:
            sharing = [row.attention_owned(number) for number in range(len(row.attention))]
            if "shared" in (*sharing, row.feedforward_weights or row.weights):
                raise ValueError("streams of two widths cannot share weights")
            for switches in row.attention:
                crosses = any(len(set(switch.split("-"))) == 2 for switch in switches)
                if crosses and not self.cross:
                    raise ValueError("streams of two widths need `cross`, the width at which they meet")
                if crosses and {"text-text", "vision-vision"} & set(switches):
                    raise ValueError("a sub-layer of two widths looks either at its own stream or at the other")

    def of(self, modality: str) -> Width:
        """A stream's sizes."""
        if modality == "vision" and self.vision:
            return self.vision
        return Width(hidden=self.hidden, heads=self.heads, feedforward=self.feedforward)


class Decoder(Section):
    """Blocks of self-attention, attention to the encoder's last states, and feed-forward (Vaswani et al. 2017)."""

    layers: Count
    memory: tuple[Modality, ...] = ("text", "vision")
    """Whose states it looks at."""
    queries: Annotated[int, Field(ge=0)] = 0
    """Learnt object queries, for detection; 0 is none."""
    learning_rate_scale: Positive = 1.0
