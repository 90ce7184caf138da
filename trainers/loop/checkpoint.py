"""Where a training stands, in files that are replaced atomically: the newest few, so that a damaged one costs minutes.

`<folder>/<key>/<step>.safetensors` holds weights, buffers, and the optimizer's and the average's state; `<step>.json`
is written after it and vouches for it by its digest. The sampler's position and the random state are the step's number:
batches and draws are functions of (seed, step). An early stop's best weights are such a pair as well, `best-<step>`, to
which the checkpoints after that step refer. The curves so far lie beside them; what they hold beyond the checkpoint's
step is dropped when the training carries on.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.store.atomic import file_sha256, write_json
from trainers.loop.ema import MovingAverage
from trainers.loop.metrics import Metrics
from trainers.loop.stopping import EarlyStopping
from trainers.loop.tensor_file import read_tensors, write_tensors

CURVES = "metrics.jsonl"
TENSORS = ".safetensors"
DESCRIPTION = ".json"
BEST = "best-"


@dataclass(frozen=True)
class State:
    """All that changes as a training goes on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    metrics: Metrics
    average: MovingAverage | None = None
    stopping: EarlyStopping | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoints of one training, which `key` identifies; in `folder`, those of another key count as none."""

    folder: Path
    key: str
    keep: int = 2

    def restore(self, state: State) -> int:
        """Load the newest that is whole, if any, and return the next step's number. Changes no file."""
        for step in reversed(self.steps()):
            described = self._verified(str(step))
            if described is None or not self._has_best(described):
                continue
            _load(state, read_tensors(self._tensors(str(step))))
            if state.stopping:
                state.stopping.load_state(described["stopping"])
            state.metrics.restore(self._own / CURVES, step)
            return step
        return 0

    def save(self, state: State, step: int) -> None:
        """Keep everything up to, and not including, step `step`; what is older than the newest `keep` goes."""
        self._open()
        state.metrics.append_new(self._own / CURVES)
        tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
        for name, parameter in state.model.named_parameters():
            for key, value in state.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        if state.average:
            tensors |= {f"average.{name}": tensor for name, tensor in state.average.weights.items()}
        self._write(str(step), tensors, {"stopping": state.stopping.state() if state.stopping else None})
        self._prune()

    def save_best(self, model: nn.Module, step: int) -> None:
        """Keep the weights that the model has now, after `step`, as the best."""
        self._open()
        self._write(f"{BEST}{step}", model.state_dict(), {})

    def load_best(self, model: nn.Module, step: int) -> None:
        model.load_state_dict(read_tensors(self._tensors(f"{BEST}{step}")))

    def remove(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def steps(self) -> list[int]:
        """The steps of the checkpoints, whole or not, ascending."""
        return sorted(int(path.stem) for path in self._own.glob(f"*{DESCRIPTION}") if path.stem.isdecimal())

    @property
    def _own(self) -> Path:
        return self.folder / self.key

    def _tensors(self, name: str) -> Path:
        return self._own / f"{name}{TENSORS}"

    def _open(self) -> None:
        """Make the folder, and remove what another training has left beside it."""
        self._own.mkdir(parents=True, exist_ok=True)
        for other in self.folder.iterdir():
            if other.name != self.key:
                shutil.rmtree(other) if other.is_dir() else other.unlink()

    def _write(self, name: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
        path = self._tensors(name)
        write_tensors(path, tensors)
        write_json(path.with_suffix(DESCRIPTION), {"sha256": file_sha256(path), **description})

    def _description(self, name: str) -> dict[str, Any] | None:
        """What was written of the tensors of this name, or None where that cannot be read."""
        try:
            described = json.loads(self._tensors(name).with_suffix(DESCRIPTION).read_text())
        except (OSError, ValueError):
            return None
        return described if isinstance(described, dict) else None

    def _verified(self, name: str) -> dict[str, Any] | None:
        """The same where the tensors are those of which it was written."""
        path, described = self._tensors(name), self._description(name)
        whole = described is not None and path.exists() and described.get("sha256") == file_sha256(path)
        return described if whole else None

    def _has_best(self, described: Mapping[str, Any]) -> bool:
        """Whether the best weights to which a checkpoint refers are there, if it refers to any."""
        best = _best_of(described)
        return best is None or self._verified(best) is not None

    def _prune(self) -> None:
        kept = {str(step) for step in self.steps()[-self.keep :]}
        kept |= {best for name in kept if (best := _best_of(self._description(name) or {}))}
        for path in [*self._own.glob(f"*{DESCRIPTION}"), *self._own.glob(f"*{TENSORS}")]:
            if path.stem not in kept:
                path.unlink()


def _best_of(described: Mapping[str, Any]) -> str | None:
    """The name of the best weights at the time of a checkpoint."""
    stopping = described.get("stopping")
    return None if stopping is None or stopping["step"] is None else f"{BEST}{stopping['step']}"


def _load(state: State, tensors: Mapping[str, Tensor]) -> None:
    state.model.load_state_dict(_under("model.", tensors))
    for name, parameter in state.model.named_parameters():
        if found := _under(f"optimizer.{name}.", tensors):
            state.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in found.items()}
    if state.average:
        for name, value in _under("average.", tensors).items():
            state.average.weights[name].copy_(value)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
