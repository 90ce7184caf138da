"""A finished run, loaded again: recipe, tokenizer and model, tied to the features that it was trained on."""

import json
from dataclasses import dataclass

from safetensors.torch import load_file
from tokenizers import Tokenizer

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe
from pipeline.store.atomic import file_sha256
from pipeline.store.features import FeatureStore
from pipeline.store.table import Table
from trainers.model import VisionLanguageModel
from trainers.samples import feature_shape, features_digest

MODEL = "model.safetensors"
TOKENIZER = "tokenizer.json"
METRICS = "metrics.parquet"
RECIPE = "recipe.json"


@dataclass(frozen=True)
class SavedRun:
    """What `train` left in a run's folder."""

    recipe: ModelRecipe
    tokenizer: Tokenizer
    model: VisionLanguageModel


def load_run(table: Table, store: FeatureStore) -> SavedRun:
    """Load a run for work on `store`. Raises PairmillError if it was trained on other features, or is not finished."""
    info = table.manifest.info
    if info["features"] != features_digest(store):
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
    model = VisionLanguageModel(recipe, tokenizer.get_vocab_size(), feature_shape(store, recipe.vision.kind))
    model.load_state_dict(load_file(table.folder / MODEL))
    return SavedRun(recipe, tokenizer, model)
