"""Where a training stands: model, optimizer and step in one safetensors file, replaced atomically.

Nothing else has to be kept: batches and draws are functions of (seed, step). The curves so far lie beside it, for the
record; lines beyond the checkpoint's step are dropped when the training carries on.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.store.atomic import replacing
from trainers.metrics import Metrics
from trainers.model import VisionLanguageModel

STATE = "state.safetensors"
CURVES = "metrics.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one training, which `key` identifies; one of another key counts as none."""

    folder: Path
    key: str

    def restore(self, model: VisionLanguageModel, optimizer: torch.optim.Optimizer, metrics: Metrics) -> int:
        """Load what was saved, if anything, and return the next step's number."""
        saved = self._read()
        if saved is None:
            self.remove()
            return 0
        step, tensors = saved
        model.load_state_dict(
            {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        )
        for name, parameter in model.named_parameters():
            prefix = f"optimizer.{name}."
            state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            if state:
                # Adam counts its steps on the CPU and keeps its averages where the parameter is.
                optimizer.state[parameter] = {k: t if k == "step" else t.to(parameter.device) for k, t in state.items()}
        metrics.restore(self.folder / CURVES, step)
        return step

    def save(self, model: VisionLanguageModel, optimizer: torch.optim.Optimizer, metrics: Metrics, step: int) -> None:
        """Keep everything up to, and not including, step `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        metrics.append_new(self.folder / CURVES)
        tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value.contiguous()
        with replacing(self.folder / STATE) as partial:
            save_file(tensors, partial, {"key": self.key, "step": json.dumps(step)})

    def remove(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _read(self) -> tuple[int, dict[str, Tensor]] | None:
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return None
                return int(metadata["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError):
            return None  # not ours, or broken by the disk: begin anew
