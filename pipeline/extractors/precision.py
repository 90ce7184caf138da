"""What precision a model's matrix products have."""

from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.recipe import Extraction


def autocast(section: Extraction, device: torch.device) -> AbstractContextManager[object]:
    """The section's autocast on a GPU. On a CPU everything is float32: there the short types are emulated, and slow."""
    if device.type != "cuda" or section.autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, section.autocast))
