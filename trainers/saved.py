"""A finished run, loaded again: recipe, tokenizer and model, tied to the features that it was trained on."""

import json
from dataclasses import dataclass

from tokenizers import Tokenizer

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe
from pipeline.store.atomic import file_sha256
from pipeline.store.features import FeatureStore
from pipeline.store.table import Table
from trainers.loop.tensor_file import read_tensors
from trainers.network.building import Detector, build
from trainers.network.features import features_digest
from trainers.network.model import VisionLanguageModel

MODEL = "model.safetensors"
TOKENIZER = "tokenizer.json"
METRICS = "metrics.parquet"
SPEED = "speed.parquet"
RECIPE = "recipe.json"
DETECTOR = "detector.json"
"""Of the recipe's `objects`, where it names any."""
BOARD = "tensorboard"
"""A folder of event files."""


@dataclass(frozen=True)
class SavedRun:
    """What `train` left in a run's folder."""

    recipe: ModelRecipe
    tokenizer: Tokenizer
    model: VisionLanguageModel


def load_run(table: Table, store: FeatureStore, storage: bool = True) -> SavedRun:
    """Load a run for work on `store`. Raises PairmillError if it was trained on other features, or is not finished.

    Without `storage` the same features may be stored in another dtype: float16 for int8, or the other way round.
    """
    info = table.manifest.info
    if info.get("features" if storage else "features_in_any_dtype") != features_digest(store, storage):
        raise PairmillError(
            f"{table.folder} was trained on other features than those of {store.identity['model']} now in the store",
            "run `make train` again, or bring back the extractor's former settings and weights",
        )
    for shard in table.manifest.shards:
        for file in shard.files:
            if file_sha256(table.folder / file.name) != file.sha256:
                raise PairmillError(f"{table.folder / file.name} is damaged", "remove it and run `make train` again")
    recipe = ModelRecipe.model_validate(json.loads((table.folder / RECIPE).read_text()))
    tokenizer = Tokenizer.from_file(str(table.folder / TOKENIZER))
    described = table.folder / DETECTOR
    detector = Detector.from_described(json.loads(described.read_text())) if recipe.objects else None
    model = build(recipe, tokenizer, store, detector)
    model.load_state_dict(read_tensors(table.folder / MODEL))
    return SavedRun(recipe, tokenizer, model)
