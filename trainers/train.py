"""The stage `train`: each run of the recipe from cached features to a saved model.

Under torchrun every process runs this stage; rank 0 writes.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.model_recipe import ModelRecipe
from pipeline.ranks import ranks
from pipeline.store.atomic import replacing, write_json
from pipeline.store.table import Shard, Table, Writing
from trainers.data.sources import Corpora, inputs_of, open_sources
from trainers.loop.checkpoint import Checkpoint
from trainers.loop.device import leave_ranks, new_accelerator
from trainers.loop.randomness import seed_of
from trainers.loop.ranking import ranking
from trainers.loop.tensor_file import write_tensors
from trainers.loop.training import Training
from trainers.network.building import Detector, build
from trainers.network.features import feature_statistics, features_digest
from trainers.network.model import VisionLanguageModel
from trainers.saved import BOARD, DETECTOR, METRICS, MODEL, RECIPE, SPEED, TOKENIZER
from trainers.weights import checkpoint_digest, initialise

VERSION = 3

SHARD = "model"


def run(job: Job) -> str:
    """Train the selected runs that are not up to date; returns one line, or `UP_TO_DATE`."""
    summaries = []
    for name in job.selected(list(job.recipe.train)):
        recipe = job.recipe.train[name]
        features = job.dataset.features(recipe.features)
        if not features.exists and recipe.features not in job.recipe.extract:
            raise PairmillError(
                f"{name}: the dataset has no {features.folder}, and the recipe no [extract.{recipe.features}]",
                "add that section and run `make extract`",
            )
        inputs = inputs_of(recipe, job.dataset, job.recipe.engine.memory_limit)
        # How often it writes down where it stands does not make it another training.
        settings = recipe.model_dump(mode="json", exclude={"checkpoints"})
        key = job.key(VERSION, settings, inputs, checkpoint_digest(recipe) or "")
        if not job.dataset.run(name).is_current(key):
            info = _train(job, name, recipe, key)
            without = info["pairs_without_features"]
            summaries.append(
                f"{name}: loss {info['loss_first']:.3f} -> {info['loss_last']:.3f} in {info['steps']} steps, "
                f"{info['samples_per_second']:,.0f} pairs/s, {info['loader_wait']:.1%} of it waiting for the loader"
                + (f"; {without:,} pairs without features" if without else "")
                + "".join(f"; {count:,} rows left out: {why}" for why, count in info["rows_skipped"].items())
            )
    if ranks() > 1:
        leave_ranks()
    return "; ".join(summaries) or UP_TO_DATE


def _train(job: Job, name: str, recipe: ModelRecipe, key: str) -> dict[str, Any]:
    table, accelerator = job.dataset.run(name), new_accelerator()
    corpora = open_sources(recipe, job.dataset, job.recipe.engine.memory_limit)
    model = new_model(recipe, corpora)
    checkpoint = Checkpoint(table.folder / "checkpoint", key, recipe.checkpoints.keep)
    training = Training(
        recipe,
        model,
        corpora.train,
        corpora.validation if len(corpora.validation) else None,
        checkpoint,
        name,
        board=table.folder / BOARD,
        ranking=ranking(model, recipe, corpora.validation),
        accelerator=accelerator,
    )
    accelerator.wait_for_everyone()  # by now each process knows that the run is to be made
    job.log("start", run=name, key=key, device=str(training.device), processes=training.ranks)
    opened: AbstractContextManager[Writing | None] = nullcontext()
    if training.leads:
        opened = table.writing(key, {SHARD: key})
    with opened as writing:
        metrics = training.run()
        steps = 1 + max(step for step, *_ in metrics.rows)
        loss_first, loss_last = metrics.edges(steps, training.weights)
        info = {
            "loss_first": loss_first,
            "loss_last": loss_last,
            "steps": steps,
            "parameters": sum(parameter.numel() for parameter in training.learnt),
            "pairs_without_features": corpora.without_features,
            "rows_skipped": corpora.skipped,
            "features": features_digest(corpora.store),
            "features_in_any_dtype": features_digest(corpora.store, storage=False),
        }
        if writing:
            metrics.write(table.folder / METRICS)
            # Not among the shard's files, nor in its info: two equal trainings never take the same time.
            training.speed.curve.write(table.folder / SPEED)
            files = [*_save(table, model, recipe, corpora), METRICS]
            writing.add(Shard.of(table.folder, SHARD, key, files, {"pairs": len(corpora.train)}))
            writing.commit(info)
            checkpoint.remove()
    job.log("done", run=name, **training.speed.summary, **info)
    return info | training.speed.summary


def new_model(recipe: ModelRecipe, corpora: Corpora) -> VisionLanguageModel:
    """A model as the recipe's seed, or its checkpoint, initialises it, with the statistics of the features."""
    torch.manual_seed(seed_of(recipe.seed, "weights"))
    detector = Detector.of(corpora.objects, corpora.tokenizer) if corpora.objects else None
    model = build(recipe, corpora.tokenizer, corpora.store, detector)
    if recipe.vision.standardize:
        mean, deviation = feature_statistics(corpora.store, corpora.image_keys)
        model.vision.mean.copy_(torch.from_numpy(mean))
        model.vision.deviation.copy_(torch.from_numpy(deviation))
    initialise(model, recipe)
    return model


def _save(table: Table, model: VisionLanguageModel, recipe: ModelRecipe, corpora: Corpora) -> list[str]:
    """Write what a finished run is; returns the files' names."""
    write_tensors(table.folder / MODEL, {name: tensor.cpu() for name, tensor in model.state_dict().items()})
    with replacing(table.folder / TOKENIZER) as partial:
        partial.write_text(json.dumps(json.loads(corpora.tokenizer.to_str()), ensure_ascii=False, indent=1))
    write_json(table.folder / RECIPE, recipe.model_dump(mode="json"))
    files = [MODEL, TOKENIZER, RECIPE]
    if corpora.objects:
        write_json(table.folder / DETECTOR, Detector.of(corpora.objects, corpora.tokenizer).described())
        files.append(DETECTOR)
    return files
