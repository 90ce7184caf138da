"""The stage `train`: each run of the recipe from cached features to a saved model."""

import json
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import ModelRecipe
from pipeline.store.atomic import replacing, write_json
from pipeline.store.features import FeatureStore
from pipeline.store.table import Shard, Table
from trainers.checkpoint import Checkpoint
from trainers.features import feature_shape, feature_statistics, features_digest
from trainers.model import VisionLanguageModel
from trainers.randomness import seed_of
from trainers.samples import prepare, read_pairs
from trainers.saved import METRICS, MODEL, RECIPE, SPEED, TOKENIZER
from trainers.text import train_tokenizer
from trainers.training import Training, best_device

VERSION = 2

SHARD = "model"


def run(job: Job) -> str:
    """Train the selected runs that are not up to date; returns one line, or `UP_TO_DATE`."""
    summaries = []
    kept = job.dataset.kept_digest(("train", "validation"), job.recipe.engine.memory_limit)
    for name in job.selected(list(job.recipe.train)):
        recipe = job.recipe.train[name]
        features = job.dataset.features(recipe.features)
        if not features.exists and recipe.features not in job.recipe.extract:
            raise PairmillError(
                f"{name}: the dataset has no {features.folder}, and the recipe no [extract.{recipe.features}]",
                "add that section and run `make extract`",
            )
        key = job.key(VERSION, recipe, kept, features)
        if not job.dataset.run(name).is_current(key):
            info = _train(job, name, recipe, key)
            without = info["pairs_without_features"]
            summaries.append(
                f"{name}: loss {info['loss_first']:.3f} -> {info['loss_last']:.3f} in {info['steps']} steps, "
                f"{info['samples_per_second']:,.0f} pairs/s, {info['loader_wait']:.1%} of it waiting for the loader"
                + (f"; {without:,} pairs without features" if without else "")
            )
    return "; ".join(summaries) or UP_TO_DATE


def _train(job: Job, name: str, recipe: ModelRecipe, key: str) -> dict[str, Any]:
    dataset, table = job.dataset, job.dataset.run(name)
    store = FeatureStore(dataset.features(recipe.features))
    memory = job.recipe.engine.memory_limit
    pairs = read_pairs(dataset, store, "train", memory)
    if not len(pairs):
        raise PairmillError(
            f"{name}: the train split has no pair with features", "enlarge [split], or relax the recipe's rules"
        )
    tokenizer = train_tokenizer(pairs.texts, recipe.text.vocabulary)
    model = new_model(recipe, tokenizer, store, pairs.keys)
    train = prepare(pairs, tokenizer, recipe, store)
    without_features = pairs.without_features
    del pairs  # the texts are not needed any more
    validation = prepare(read_pairs(dataset, store, "validation", memory), tokenizer, recipe, store)
    with table.writing(key, {SHARD: key}) as writing:
        checkpoint = Checkpoint(table.folder / "checkpoint", key)
        training = Training(recipe, model, store, train, validation, checkpoint, best_device(), name)
        job.log("start", run=name, key=key, device=str(training.device))
        metrics = training.run()
        loss_first, loss_last = metrics.edges(recipe.steps, training.weights)
        info = {
            "loss_first": loss_first,
            "loss_last": loss_last,
            "steps": recipe.steps,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "pairs_without_features": without_features,
            "features": features_digest(store),
            "features_in_any_dtype": features_digest(store, storage=False),
        }
        metrics.write(table.folder / METRICS)
        # Not among the shard's files, nor in its info: two equal trainings never take the same time.
        training.speed.curve.write(table.folder / SPEED)
        _save(table, model, tokenizer, recipe)
        files = [MODEL, TOKENIZER, METRICS, RECIPE]
        writing.add(Shard.of(table.folder, SHARD, key, files, {"pairs": len(train)}))
        writing.commit(info)
    checkpoint.remove()
    job.log("done", run=name, **training.speed.summary, **info)
    return info | training.speed.summary


def new_model(recipe: ModelRecipe, tokenizer: Tokenizer, store: FeatureStore, keys: np.ndarray) -> VisionLanguageModel:
    """A model as the recipe's seed initialises it, with the features' statistics over the images `keys` (ascending)."""
    torch.manual_seed(seed_of(recipe.seed, "weights"))
    model = VisionLanguageModel(recipe, tokenizer.get_vocab_size(), feature_shape(store, recipe.vision.kind))
    if recipe.vision.standardize:
        mean, deviation = feature_statistics(store, keys)
        model.vision.mean.copy_(torch.from_numpy(mean))
        model.vision.deviation.copy_(torch.from_numpy(deviation))
    return model


def _save(table: Table, model: VisionLanguageModel, tokenizer: Tokenizer, recipe: ModelRecipe) -> None:
    with replacing(table.folder / MODEL) as partial:
        save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, partial)
    with replacing(table.folder / TOKENIZER) as partial:
        partial.write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1))
    write_json(table.folder / RECIPE, recipe.model_dump(mode="json"))
