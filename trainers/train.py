"""The stage `train`: each run of the recipe from cached features to a saved model."""

import json
from typing import Any

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
from trainers.model import VisionLanguageModel
from trainers.randomness import seed_of
from trainers.samples import (
    feature_shape,
    feature_statistics,
    features_digest,
    image_lengths,
    prepare,
    read_pairs,
)
from trainers.saved import METRICS, MODEL, RECIPE, TOKENIZER
from trainers.text import train_tokenizer
from trainers.training import Training, best_device

VERSION = 1

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
            summaries.append(
                f"{name}: loss {info['loss_first']:.3f} -> {info['loss_last']:.3f} in {info['steps']} steps"
            )
    return "; ".join(summaries) or UP_TO_DATE


def _train(job: Job, name: str, recipe: ModelRecipe, key: str) -> dict[str, Any]:
    dataset, table, features = job.dataset, job.dataset.run(name), job.dataset.features(recipe.features)
    store = FeatureStore(features)
    memory = job.recipe.engine.memory_limit
    pairs = {split: read_pairs(dataset, store, split, memory) for split in ("train", "validation")}
    if not len(pairs["train"]):
        raise PairmillError(
            f"{name}: the train split has no pair with features", "enlarge [split], or relax the recipe's rules"
        )
    tokenizer = train_tokenizer(pairs["train"].texts, recipe.text.vocabulary)
    lengths = image_lengths(features)
    samples = {split: prepare(some, tokenizer, recipe, store, lengths) for split, some in pairs.items() if len(some)}
    model = new_model(recipe, tokenizer, store, pairs["train"].keys)
    with table.writing(key, {SHARD: key}) as writing:
        checkpoint = Checkpoint(table.folder / "checkpoint", key)
        training = Training(
            recipe, model, store, samples["train"], samples.get("validation"), checkpoint, best_device(), name
        )
        job.log("start", run=name, key=key, device=str(training.device))
        metrics = training.run()
        loss_first, loss_last = metrics.edges(recipe.steps, training.weights)
        info = {
            "loss_first": loss_first,
            "loss_last": loss_last,
            "steps": recipe.steps,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "features": features_digest(store),
        }
        metrics.write(table.folder / METRICS)
        _save(table, model, tokenizer, recipe)
        files = [MODEL, TOKENIZER, METRICS, RECIPE]
        writing.add(Shard.of(table.folder, SHARD, key, files, {"pairs": len(pairs["train"])}))
        writing.commit(info)
    checkpoint.remove()
    job.log("done", run=name, samples_per_second=round(training.samples_per_second, 1), **info)
    return info


def new_model(
    recipe: ModelRecipe, tokenizer: Tokenizer, store: FeatureStore, keys: tuple[str, ...]
) -> VisionLanguageModel:
    """A model as the recipe's seed initialises it, with the features' statistics over the images `keys`."""
    torch.manual_seed(seed_of(recipe.seed, "weights"))
    model = VisionLanguageModel(recipe, tokenizer.get_vocab_size(), feature_shape(store, recipe.vision.kind))
    if recipe.vision.standardize:
        mean, deviation = feature_statistics(store, list(keys))
        model.vision.mean.copy_(torch.from_numpy(mean))
        model.vision.deviation.copy_(torch.from_numpy(deviation))
    return model


def _save(table: Table, model: VisionLanguageModel, tokenizer: Tokenizer, recipe: ModelRecipe) -> None:
    with replacing(table.folder / MODEL) as partial:
        save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, partial)
    with replacing(table.folder / TOKENIZER) as partial:
        partial.write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1))
    write_json(table.folder / RECIPE, recipe.model_dump(mode="json"))
