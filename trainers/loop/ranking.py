"""Retrieval on the validation split while a model is trained: what losses do not tell, and an early stop may go by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.model_recipe import ModelRecipe
from trainers.data.mixture import Corpus, Mixture
from trainers.network.model import VisionLanguageModel
from trainers.tasks.retrieval import retrieval
from trainers.tasks.scoring import Scorer

PAIRS = 1000
"""At most so many, evenly spread over the split, stand for it."""


@dataclass(frozen=True)
class Ranking:
    """All texts of some validation pairs against all their images, by cosine in the joint space."""

    model: VisionLanguageModel
    corpus: Corpus

    def __call__(self) -> dict[str, float]:
        """R@1, R@5 and R@10 both ways ("t2i_r10"), of the weights that the model has now."""
        samples, reader = self.corpus.samples, self.corpus.reader
        assert samples.texts is not None
        assert reader is not None
        rows = np.unique(np.linspace(0, len(samples) - 1, min(PAIRS, len(samples))).astype(np.int64))
        paired_texts = [tuple(samples.texts[row].tolist()) for row in rows]
        paired_keys = samples.keys_of(rows)
        texts, keys = sorted(set(paired_texts)), sorted(set(paired_keys))
        place_of_text = {text: place for place, text in enumerate(texts)}
        place_of_key = {key: place for place, key in enumerate(keys)}
        right = np.zeros((len(texts), len(keys)), bool)
        for text, key in zip(paired_texts, paired_keys, strict=True):
            right[place_of_text[text], place_of_key[key]] = True
        # The very device of the weights: "cpu:0" for "cpu" would make copies, and of a training's own model.
        device = next(self.model.parameters()).device
        scores = Scorer(self.model, reader, device, samples.pieces).scores(texts, keys, rerank=0)
        found = retrieval(scores, right)
        return {name: value for name, value in found.items() if name.startswith(("t2i_r", "i2t_r"))}


def ranking(
    model: VisionLanguageModel, recipe: ModelRecipe, validation: Mixture
) -> Callable[[], Mapping[str, float]] | None:
    """For a model with a joint space and a split with pairs; None for others, of which each pair would be a pass."""
    pairs = [corpus for corpus in validation.corpora if corpus.samples.texts and corpus.reader]
    return Ranking(model, pairs[0]) if pairs and (recipe.objectives.itc or recipe.objectives.vse) else None
