"""Named tensors in one safetensors file. Where two names stand for one tensor, it is kept once and read as both."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.store.atomic import replacing

SHARED = "shared"
"""The file's metadata under this name say, in JSON, which name stands for which other."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace `path` atomically; the same tensors make the same bytes."""
    stored: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and memory in names:
            shared[name] = names[memory]
        else:
            names[memory] = name
            stored[name] = tensor.detach().contiguous()
    with replacing(path) as partial:
        save_file(stored, partial, {SHARED: json.dumps(shared)} if shared else None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What `write_tensors` was given, on the CPU. Raises SafetensorError or ValueError for what it did not write."""
    with safe_open(path, "pt") as file:
        shared = json.loads((file.metadata() or {}).get(SHARED, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no dict
    if not isinstance(shared, dict) or not all(isinstance(n, str) and n in tensors for n in shared.values()):
        raise ValueError(f"{path}: its shared names stand for tensors that are not there")
    return tensors | {name: tensors[other] for name, other in shared.items()}
