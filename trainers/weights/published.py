"""A folder as `transformers` saves a model: config.json and model.safetensors. Pickles are never read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import PairmillError

CONFIGURATION = "config.json"
TENSORS = "model.safetensors"
TOKENIZER = "tokenizer.json"
LARGEST_CONFIGURATION = 1 << 20
"""Bytes."""
WORDS = "embeddings.word_embeddings.weight"
"""What all of the families call it, after the base model's prefix ("bert." and the like), where there is one."""
SAFE = 'save it with transformers: model.save_pretrained("folder", safe_serialization=True)'
OLD_NAMES = {"weight": "gamma", "bias": "beta"}
"""Of LayerNorms, in checkpoints that were converted from TensorFlow."""


@dataclass(frozen=True)
class Published:
    """A checkpoint's configuration and tensors, by the names of the base model; heads by their whole names."""

    folder: Path
    configuration: Mapping[str, Any]
    prefix: str
    _tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> "Published":
        """Raises PairmillError where a file is missing, is damaged, or would have to be unpickled."""
        configuration = _configuration(folder / CONFIGURATION)
        path = folder / TENSORS
        if not path.is_file():
            others = ", ".join(sorted(found.name for found in folder.glob("*.bin"))) or "no other weights"
            raise PairmillError(f"{folder} has no {TENSORS}, but {others}; pickles are not read", SAFE)
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no dict
        except (SafetensorError, OSError) as error:
            raise PairmillError(f"cannot read {path}: {error}", SAFE) from None
        prefixes = sorted((name.removesuffix(WORDS) for name in tensors if name.endswith(WORDS)), key=len)
        if not prefixes:
            raise PairmillError(f"{path} has no word embeddings", "name a checkpoint of BERT's family")
        return cls(folder, configuration, prefixes[0], tensors)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def whole(self, name: str) -> Tensor:
        """A tensor by its whole name, as float32. Raises PairmillError where there is none."""
        if name not in self._tensors:
            raise PairmillError(f"{self.folder / TENSORS} has no tensor {name}", "name a whole checkpoint")
        tensor = self._tensors[name].float()
        if not tensor.isfinite().all():
            raise PairmillError(f"{self.folder / TENSORS}: {name} is not finite", "name another checkpoint")
        return tensor

    def __getitem__(self, name: str) -> Tensor:
        """A tensor of the base model, likewise."""
        return self.whole(self.prefix + name)

    def part(self, name: str, of_base: bool = True) -> dict[str, Tensor]:
        """The weight and bias of a Linear or a LayerNorm."""
        whole = (self.prefix if of_base else "") + name
        parts = {}
        for kind, old in OLD_NAMES.items():
            found = f"{whole}.{kind}"
            parts[kind] = self.whole(found if self.has(found) or not self.has(f"{whole}.{old}") else f"{whole}.{old}")
        return parts


def _configuration(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST_CONFIGURATION:
            raise ValueError("it is too large for a configuration")
        configuration = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(configuration, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise PairmillError(
            f"cannot read {path}: {error}", "text.checkpoint is a folder with config.json and model.safetensors"
        ) from None
    return configuration
