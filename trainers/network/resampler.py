"""The perceiver resampler: however many positions become a fixed few (Alayrac et al. 2022, Flamingo, section 2.1 and
appendix A.1.1; KOSMOS-1, section 2.1, takes it over).

Q learnt latents attend to the input's positions and to themselves:

    latents <- latents + attention(queries = LN(latents), keys and values = [LN(input); LN(latents)])
    latents <- latents + feedforward(LN(latents))

`layers` times, each with its own weights and norms, then a last LayerNorm. The linear layers have no bias and there is
no dropout, as in public implementations. An image is one frame here, so that there is no embedding of time.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import Encoder
from pipeline.model_recipe import Resampler as ResamplerRecipe


class PerceiverAttention(nn.Module):
    """Latents (B, Q, hidden) look at the input (B, L, hidden), where it is present (B, L), and at themselves."""

    def __init__(self, hidden: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.input_norm = nn.LayerNorm(hidden, epsilon)
        self.latents_norm = nn.LayerNorm(hidden, epsilon)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key_value = nn.Linear(hidden, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(self, latents: Tensor, states: Tensor, present: Tensor) -> Tensor:
        latents = self.latents_norm(latents)
        key, value = self.key_value(torch.cat([self.input_norm(states), latents], 1)).chunk(2, -1)
        visible = torch.cat([present, present.new_ones(latents.shape[:2])], 1)
        seen = functional.scaled_dot_product_attention(
            self._by_head(self.query(latents)),
            self._by_head(key),
            self._by_head(value),
            attn_mask=visible[:, None, None, :],
        )
        states = self.out(seen.transpose(1, 2).flatten(2))
        return states

    def _by_head(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Resampler(nn.Module):
    """Of the vision stream's width, heads and feed-forward width."""

    def __init__(self, settings: ResamplerRecipe, encoder: Encoder) -> None:
        super().__init__()
        size = encoder.of("vision")
        self.latents = nn.Parameter(torch.randn(settings.queries, size.hidden) * encoder.initializer)
        self.attention = nn.ModuleList(
            PerceiverAttention(size.hidden, size.heads, encoder.epsilon) for _ in range(settings.layers)
        )
        self.feedforward = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(size.hidden, encoder.epsilon),
                nn.Linear(size.hidden, size.feedforward, bias=False),
                nn.GELU(),
                nn.Linear(size.feedforward, size.hidden, bias=False),
            )
            for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(size.hidden, encoder.epsilon)

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """(B, L, hidden), (B, L) bool -> (B, queries, hidden), of which every one is present."""
        latents = self.latents.to(states.dtype).expand(len(states), -1, -1)
        for attention, feedforward in zip(self.attention, self.feedforward, strict=True):
            latents = latents + attention(latents, states, present)
            latents = latents + feedforward(latents)
        resampled: Tensor = self.norm(latents)
        return resampled
