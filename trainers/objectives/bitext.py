"""Contrast between translations of one caption, in the joint space of texts and images (MURAL, section 3.1).

Both go through the text tower and through itc's text projection: (B, width) each, of length 1. The loss is itc's: the
mean of the cross-entropies over rows and over columns of text_i . translation_j / temperature. The temperature is
itc's, or, where the recipe gives one, learnt for this alone (as in the paper). Rows that are no negatives of each
other, by `Batch.partners`, are left out of the softmax.
"""

from typing import TYPE_CHECKING

import torch

from pipeline.model_recipe import Translations
from trainers.objectives.gathering import Everyone
from trainers.objectives.itc import ImageTextContrast, Temperature, contrast
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Sizes

if TYPE_CHECKING:
    from trainers.network.towers import Towers


@OBJECTIVES.add("bitext")
class BitextContrast(Objective):
    settings: Translations
    needs = frozenset({"text", "translation"})

    def __init__(self, settings: Translations, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        first = settings.temperature
        self.scale = None if first is None else Temperature(first, True, (0.01, 100.0))

    def forward(self, towers: "Towers", random: torch.Generator) -> Outcome:
        model, batch = towers.model, towers.batch
        assert batch.translation is not None
        space = model.objective("itc")
        assert isinstance(space, ImageTextContrast)
        texts = space.embedded_text(towers)
        translated = towers.text_of(batch.translation)
        if space.at_end:
            translated = model.encoder.crossing({"text": translated})["text"]
        translations = space.embed_text(translated)
        everyone = Everyone(batch)
        scale = space.scale() if self.scale is None else self.scale()
        loss, right = contrast(
            everyone.rows(texts),
            everyone.rows(translations),
            scale,
            everyone.partners,
            space.settings.smoothing,
        )
        return Outcome(loss, {"accuracy": right, "scale": scale.detach()})
