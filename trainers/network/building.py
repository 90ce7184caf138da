"""A model as its recipe, its tokenizer and its features ask for it: for a training, and for what was trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Tokenizer

from pipeline.model_recipe import ModelRecipe
from pipeline.store.features import FeatureStore
from trainers.data.tags import class_tokens
from trainers.data.text import special_tokens
from trainers.network.embeddings import FeatureShape
from trainers.network.features import feature_shape
from trainers.network.model import VisionLanguageModel


@dataclass(frozen=True)
class Detector:
    """What a model knows of the detector whose boxes and classes supervise it."""

    shape: FeatureShape
    class_words: tuple[tuple[int, ...], ...]
    """The pieces of each class's name."""

    @classmethod
    def of(cls, objects: FeatureStore, tokenizer: Tokenizer) -> "Detector":
        names = objects.identity.get("classes") or ()
        return cls(feature_shape(objects, "region"), class_tokens(tokenizer, names))

    def described(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    @classmethod
    def from_described(cls, value: Mapping[str, Any]) -> "Detector":
        shape = value["shape"]
        words = tuple(tuple(pieces) for pieces in value["class_words"])
        return cls(FeatureShape(shape["width"], shape["classes"], tuple(shape["grid"])), words)


def build(
    recipe: ModelRecipe, tokenizer: Tokenizer, store: FeatureStore, detector: Detector | None = None
) -> VisionLanguageModel:
    """With first weights drawn from torch's generator; `detector` where the recipe names `objects`."""
    return VisionLanguageModel(
        recipe,
        tokenizer.get_vocab_size(),
        feature_shape(store, recipe.vision.kind),
        objects=detector.shape if detector else None,
        class_words=detector.class_words if detector else (),
        special=special_tokens(tokenizer),
    )
