"""The GPUs of this machine: which there are, and what a worker that was given one of them runs its models on."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> tuple[str, ...]:
    """The names by which CUDA_VISIBLE_DEVICES may choose one GPU each; none where torch can use none."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return ()  # without the seconds that importing torch takes
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return tuple(named[:count] or map(str, range(count)))


def own_device() -> "torch.device":
    """Where this process' models run: its GPU, or the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
