"""The loop: one model, one optimizer, one plan of batches, from whichever step the checkpoint stands at."""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe
from pipeline.store.atomic import write_json
from pipeline.store.features import FeatureStore
from trainers.batch import Batch
from trainers.checkpoint import Checkpoint
from trainers.loader import VisionReader, make_batch, prefetched
from trainers.metrics import Metrics
from trainers.model import VisionLanguageModel
from trainers.objectives import Outcome
from trainers.optimizer import learning_rate, make_optimizer, set_learning_rate
from trainers.plan import Step, epoch_batches, steps
from trainers.randomness import numpy_generator, seed_of, torch_generator
from trainers.samples import Samples
from trainers.speed import Speed

CHECKPOINT_SECONDS = 20.0
FAILED_BATCH = "failed-batch.json"


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> "torch.autocast | nullcontext[None]":
    """bf16 on a GPU, float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


@dataclass
class Training:
    """One training. `run` may be interrupted at any time; a new object with the same arguments then carries on."""

    recipe: ModelRecipe
    model: VisionLanguageModel
    store: FeatureStore
    train: Samples
    validation: Samples
    """May be empty."""
    checkpoint: Checkpoint
    device: torch.device
    label: str = "train"
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    def __post_init__(self) -> None:
        self.model.to(self.device)
        self.metrics = Metrics()
        self.speed = Speed()
        scales = [row.learning_rate_scale for row in self.recipe.encoder.blocks for _ in range(row.repeat)]
        self.optimizer = make_optimizer(self.model, self.recipe.optimizer, scales)
        chosen = self.recipe.objectives.chosen
        self.weights = {name: settings.weight for name, settings in chosen.items()}
        self.reader = VisionReader(self.store, self.recipe.vision, tuple(chosen), pin=self.device.type == "cuda")

    def run(self, stop: int | None = None) -> Metrics:
        """Train up to step `stop`, by default the recipe's last. Raises PairmillError where the loss is not finite."""
        recipe = self.recipe
        first = self.checkpoint.restore(self.model, self.optimizer, self.metrics)
        saved = time.monotonic()
        validate_at = {recipe.steps * (n + 1) // recipe.validations - 1 for n in range(recipe.validations)}
        with tqdm(total=recipe.steps, initial=first, desc=self.label, unit="step", disable=None) as bar:
            batches = self._batches(first, recipe.steps if stop is None else stop)
            asked = time.monotonic()  # from here on the loader is waited for
            for step, batch in batches:
                given = time.monotonic()
                loss = self._step(step, batch)
                self.speed.add(step.number, len(batch), given - asked, time.monotonic() - given)
                if step.number in validate_at and len(self.validation):
                    self.metrics.add(step.number, self.validate())
                bar.set_postfix(loss=f"{loss:.3f}", **self.speed.shown, refresh=False)
                bar.update()
                if time.monotonic() - saved > self.checkpoint_seconds:
                    self.checkpoint.save(self.model, self.optimizer, self.metrics, step.number + 1)
                    saved = time.monotonic()
                asked = time.monotonic()
        return self.metrics

    def _batches(self, first: int, stop: int) -> Iterator[tuple[Step, Batch]]:
        recipe = self.recipe

        def make(step: Step) -> tuple[Step, Batch]:
            random = numpy_generator(recipe.seed, "sample", step.number)
            return step, make_batch(self.train, self.reader, step.rows, random)

        return prefetched(make, steps(self.train, recipe.batch, recipe.seed, first, stop))

    def _step(self, step: Step, batch: Batch) -> float:
        """Forward, backward, update; everything random in it comes from (seed, step)."""
        recipe, number = self.recipe, step.number
        torch.manual_seed(seed_of(recipe.seed, "dropout", number))
        rate = learning_rate(recipe.optimizer, number, recipe.steps)
        set_learning_rate(self.optimizer, rate)
        self.model.train()
        on_device = batch.to(self.device)
        values: dict[str, Tensor] = {}
        losses = []
        for name in self._objectives_of(number):
            outcome = self._outcome(name, on_device, torch_generator(recipe.seed, name, number))
            losses.append(outcome.loss if recipe.mixing == "draw" else self.weights[name] * outcome.loss)
            values[f"loss/{name}"] = outcome.loss.detach()
            values |= {f"{scalar}/{name}": value for scalar, value in outcome.scalars.items()}
        loss = torch.stack(losses).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip)
        total = loss.item()
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise self._diverged(number, total, batch)
        self.optimizer.step()
        scalars = {name: value.item() for name, value in values.items()}
        self.metrics.add(number, {"loss": total, **scalars, "lr": rate, "grad_norm": norm.item()})
        return total

    def _objectives_of(self, step: int) -> list[str]:
        names = list(self.weights)
        if self.recipe.mixing == "sum":
            return names
        weights = torch.tensor([self.weights[name] for name in names])
        return [names[int(torch.multinomial(weights, 1, generator=torch_generator(self.recipe.seed, "draw", step)))]]

    def _outcome(self, name: str, batch: Batch, random: torch.Generator) -> Outcome:
        with precision(self.device):
            outcome: Outcome = self.model.objective(name)(self.model, batch, random)
        return outcome

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Each objective's loss and scalars on the validation split; the same draws each time."""
        self.model.eval()
        sums: dict[str, float] = {}
        for number, rows in enumerate(epoch_batches(self.validation, self.recipe.batch, self.recipe.seed, 0)):
            batch = make_batch(self.validation, self.reader, rows).to(self.device)
            for name in self.weights:
                outcome = self._outcome(name, batch, torch_generator(self.recipe.seed, "validation", name, number))
                for scalar, value in {"loss": outcome.loss, **outcome.scalars}.items():
                    title = f"validation/{scalar}/{name}"
                    sums[title] = sums.get(title, 0.0) + float(value) * len(rows)
        return {title: value / len(self.validation) for title, value in sums.items()}

    def _diverged(self, step: int, loss: float, batch: Batch) -> PairmillError:
        path = Path(self.checkpoint.folder).parent / FAILED_BATCH
        write_json(path, {"step": step, "loss": json.dumps(loss), "uids": list(batch.uids)})
        return PairmillError(
            f"{self.label}: the loss or its gradient is not finite at step {step} (loss {loss}); "
            f"the batch's uids are in {path}",
            "lower optimizer.learning_rate, or lengthen its warmup",
        )
