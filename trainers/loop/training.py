"""The loop: one model, one optimizer, one plan of batches, from whichever step the newest checkpoint stands at."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe
from pipeline.store.atomic import write_json
from trainers.data.batch import Batch
from trainers.data.plan import Step
from trainers.loop.checkpoint import Checkpoint, State
from trainers.loop.device import check_compiler, keep_freed_memory, new_accelerator
from trainers.loop.ema import MovingAverage
from trainers.loop.losses import Draws, MixedLosses
from trainers.loop.metrics import Metrics
from trainers.loop.optimizer import learning_rate, make_optimizer, set_learning_rate
from trainers.loop.speed import Speed, Waiting
from trainers.loop.stopping import EarlyStopping
from trainers.loop.tensorboard import Board
from trainers.network.encoder import Block
from trainers.network.model import VisionLanguageModel
from trainers.tasks.retrieval import CUTS

FAILED_BATCH = "failed-batch.json"
WRITING_SHARE = 0.05
"""Of a training's time, what goes into checkpoints at the most, where they are not asked for after every step."""


class Feed(Protocol):
    """Where batches come from: functions of their number, so that a training may carry on at any."""

    def batches(self, first: int, stop: int, rank: int, ranks: int, pin: bool) -> Iterator[tuple[Step, Batch]]:
        """The batches `first` .. `stop` - 1, of each this rank's rows; page-locked with `pin`."""
        ...

    def once(self, rank: int, ranks: int) -> Iterator[Batch]:
        """All there is, once, in the same order each time; of each batch this rank's rows."""
        ...


@dataclass
class Training:
    """One training. `run` may be interrupted at any time; a new object with the same arguments then carries on."""

    recipe: ModelRecipe
    model: VisionLanguageModel
    train: Feed
    validation: Feed | None
    checkpoint: Checkpoint
    label: str = "train"
    board: Path | None = None
    """Folder for TensorBoard."""
    ranking: Callable[[], Mapping[str, float]] | None = None
    """More to know of a validation, of the model as it is then: "t2i_r10" and the like."""
    accelerator: Accelerator = field(default_factory=new_accelerator)

    def __post_init__(self) -> None:
        recipe, self.device = self.recipe, self.accelerator.device
        if recipe.early_stop:
            self._check_stop(recipe.early_stop.metric)
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.leads = self.accelerator.is_main_process
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model.to(self.device)
        if recipe.compile:
            check_compiler()
            for module in self.model.modules():
                if isinstance(module, Block):
                    module.compile(dynamic=True)
        self.losses = MixedLosses(self.model, recipe)
        self.parallel = self.accelerator.prepare_model(self.losses)
        self.learnt = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.metrics, self.speed = Metrics(), Speed(self.ranks)
        self.state = State(
            self.model,
            make_optimizer(self.model, recipe),
            self.metrics,
            MovingAverage(self.model, recipe.ema) if recipe.ema else None,
            EarlyStopping(recipe.early_stop) if recipe.early_stop else None,
        )

    @property
    def weights(self) -> dict[str, float]:
        """The objectives' weights, by name."""
        return self.losses.weights

    def run(self, stop: int | None = None) -> Metrics:
        """Train up to step `stop`, by default to the end; then the model has the weights that are to be saved.

        Those are the last ones, their average or the best validation's, as the recipe says. Raises PairmillError where
        the loss is not finite.
        """
        recipe, number = self.recipe, self._restore()
        stop = recipe.steps if stop is None else stop
        validate_at = {recipe.steps * (n + 1) // recipe.validations - 1 for n in range(recipe.validations)}
        board = Board(self.board, number) if self.board and self.leads else None
        progress = tqdm(
            total=recipe.steps, initial=number, desc=self.label, unit="step", disable=None if self.leads else True
        )
        size, pin = recipe.batch.accumulate, self.device.type == "cuda"
        feed = Waiting(self.train.batches(number * size, stop * size, self.rank, self.ranks, pin))
        saving = _Pace(recipe.checkpoints.seconds)
        try:
            while number < stop and not self._over:
                started, waited = time.monotonic(), feed.seconds
                values = self._step(number, feed)
                waited = feed.seconds - waited
                values |= self.speed.add(number, waited, time.monotonic() - started - waited)
                if number in validate_at and self.validation:
                    values |= self._validated(number)
                if board:
                    board.add(number, values)
                progress.set_postfix(loss=f"{values['loss']:.3f}", **self.speed.shown, refresh=False)
                progress.update()
                number += 1
                if self.leads and saving.is_due():
                    with saving:
                        self.checkpoint.save(self.state, number)
        finally:
            feed.close()
            progress.close()
            if board:
                board.close()
        if number == recipe.steps or self._over:
            self._finish()
        return self.metrics

    def validate(self) -> dict[str, float]:
        """Each objective's loss and scalars on the validation split, of the weights that the model has.

        "validation/loss" is the weighted sum of the losses. The draws are the same each time.
        """
        assert self.validation is not None
        sums: dict[str, Tensor] = {}
        self.model.eval()
        with torch.inference_mode():
            for number, batch in enumerate(self.validation.once(self.rank, self.ranks)):
                draws = Draws(self.recipe.seed, "validation", number, self.rank)
                found = self.losses(batch.to(self.device), self.losses.names(batch), draws)
                for name, value in found.items():
                    if name != "loss":
                        weighed = torch.stack([value.float(), torch.ones_like(value.float())]) * len(batch)
                        sums[name] = sums.get(name, torch.zeros_like(weighed)) + weighed
        if not sums:
            return {}
        totals = self.accelerator.reduce(torch.stack(list(sums.values())), "sum")
        values = dict(zip(sums, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))
        loss = sum(weight * values[f"loss/{name}"] for name, weight in self.weights.items() if f"loss/{name}" in values)
        return {f"validation/{name}": value for name, value in {"loss": loss, **values}.items()}

    def _restore(self) -> int:
        """The next step's number. The ranks must agree on it, and none may write before all have read."""
        number = self.checkpoint.restore(self.state)
        if len(set(gather_object([number]))) > 1:
            raise PairmillError(
                f"{self.label}: the processes find different checkpoints in {self.checkpoint.folder}",
                "keep the dataset's folder where all machines see it",
            )
        self.accelerator.wait_for_everyone()
        return number

    def _step(self, number: int, feed: Iterator[tuple[Step, Batch]]) -> dict[str, float]:
        """Forward and backward for each of its batches, and one update; everything random comes from (seed, number)."""
        recipe, size = self.recipe, self.recipe.batch.accumulate
        rate = learning_rate(recipe.optimizer, number, recipe.steps)
        set_learning_rate(self.state.optimizer, rate)
        self.model.train()
        found: list[dict[str, Tensor]] = []
        uids: list[str] = []
        for part in range(size):
            planned, batch = next(feed)
            self.speed.see(batch)
            uids += batch.uids
            draws = Draws(recipe.seed, "train", planned.number, self.rank)
            torch.manual_seed(draws.seed_of("dropout"))
            with self._syncing(part == size - 1):
                losses = self.parallel(batch.to(self.device), self.losses.drawn(batch, number), draws)
                self.accelerator.backward(losses["loss"] / size)
            found.append({name: value.detach() for name, value in losses.items()})
        norm = self.accelerator.clip_grad_norm_(self.learnt, recipe.optimizer.clip)
        values = self._averaged([*found, {"grad_norm": norm}])
        if not (torch.tensor([values["loss"], values["grad_norm"]]).isfinite().all()):
            raise self._diverged(number, values["loss"], uids)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.state.average:
            self.state.average.update(number)
        values["lr"] = rate
        self.metrics.add(number, values)
        return values

    def _syncing(self, last: bool) -> AbstractContextManager[None]:
        """The ranks' gradients are averaged in the last backward pass of a step."""
        return nullcontext() if last else self.accelerator.no_sync(self.parallel)

    def _averaged(self, found: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        """Over a step's batches that have the name, and over the ranks; one transfer from the device."""
        names = list(dict.fromkeys(name for values in found for name in values))
        means = [torch.stack([values[name].float() for values in found if name in values]).mean() for name in names]
        return dict(zip(names, self.accelerator.reduce(torch.stack(means), "mean").tolist(), strict=True))

    def _validated(self, number: int) -> dict[str, float]:
        """Validate the weights that would be saved; keep them where an early stop finds them the best so far."""
        with self.state.average.applied() if self.state.average else nullcontext():
            values = self.validate()
            if self.ranking:
                ranked = [dict(self.ranking()) if self.leads else None]
                (found,) = broadcast_object_list(ranked)
                values |= {f"validation/{name}": value for name, value in (found or {}).items()}
            self.metrics.add(number, values)
            better = self.state.stopping and self.state.stopping.judge(number, values)
            if better and self.leads:
                self.checkpoint.save_best(self.model, number)
        return values

    def _check_stop(self, metric: str) -> None:
        """Raise PairmillError where the validation cannot have this metric: before the first step."""
        if not self.validation:
            raise PairmillError(f"{self.label}: early_stop has no validation split to go by", "enlarge [split]")
        objectives = list(self.recipe.objectives.chosen)
        ranked = [f"{way}_r{cut}" for way in ("t2i", "i2t") for cut in CUTS] if self.ranking else []
        if metric not in ("loss", *ranked) and metric.partition("/")[2] not in objectives:
            there = ", ".join(["loss", *(f"loss/{name}" for name in objectives), *ranked])
            raise PairmillError(f"{self.label}: early_stop.metric is {metric!r}", f"name one of {there}")

    @property
    def _over(self) -> bool:
        return bool(self.state.stopping and self.state.stopping.over)

    def _finish(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.state.stopping and self.state.stopping.step is not None:
            self.checkpoint.load_best(self.model, self.state.stopping.step)
        elif self.state.average:
            self.state.average.swap()

    def _diverged(self, step: int, loss: float, uids: Sequence[str]) -> PairmillError:
        path = Path(self.checkpoint.folder).parent / FAILED_BATCH
        everyone = gather_object(list(uids))
        if self.leads:
            write_json(path, {"step": step, "loss": json.dumps(loss), "uids": everyone})
        return PairmillError(
            f"{self.label}: the loss or its gradient is not finite at step {step} (loss {loss}); "
            f"the batch's uids are in {path}",
            "lower optimizer.learning_rate, or lengthen its warmup",
        )


class _Pace:
    """When the next checkpoint is due: `seconds` after the last, and longer where writing takes long; 0 is always."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.took = 0.0
        self.since = time.monotonic()

    def is_due(self) -> bool:
        wanted = max(self.seconds, self.took / WRITING_SHARE) if self.seconds else 0.0
        return time.monotonic() - self.since >= wanted

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self.took, self.since = now - self.since, now
