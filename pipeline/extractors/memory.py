"""Batches that fit the memory: how many images a forward pass takes, and what happens when that was too many."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.extractors import Extractor

CPU_BATCH = 16
LARGEST_BATCH = 256
"""Beyond it a GPU gains nothing, and the images that wait for it take memory as well."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a library's way to say that an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, cv2.error):
        return bool(getattr(error, "code", 0) == cv2.Error.StsNoMem)
    # torch's allocator for the CPU knows only RuntimeError.
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


class Fitting:
    """An extractor with a number of images a batch that fits its device. `size` shrinks where it did not."""

    def __init__(self, extractor: Extractor, size: int) -> None:
        self.extractor, self.size = extractor, size

    def __call__(self, prepared: Sequence[Any]) -> list[dict[str, np.ndarray] | str]:
        """Of each image its arrays; or, where even alone it was too much, what was said."""
        results: list[dict[str, np.ndarray] | str] = []
        size = len(prepared)
        while len(results) < len(prepared):
            part = prepared[len(results) : len(results) + size]
            made = self._tried(part)
            if not isinstance(made, str):
                results += made
            elif len(part) > 1:
                size = (len(part) + 1) // 2
            else:
                results.append(made)
                size = len(prepared)  # it was this image, and not their number
        if size < len(prepared) and not any(isinstance(result, str) for result in results):
            self.size = min(self.size, size)
        return results

    def _tried(self, prepared: Sequence[Any]) -> list[dict[str, np.ndarray]] | str:
        try:
            return self.extractor(prepared)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = (str(error).splitlines() or [type(error).__name__])[0]
        # Outside of `except`: the error's traceback holds on to the tensors of the batch.
        free_memory()
        return said


def fitting(extractor: Extractor, size: int | None, device: torch.device) -> Fitting:
    """The extractor in batches of `size`; by default of `CPU_BATCH`, on a GPU of as many as its memory takes.

    That is found by doubling, on a grey picture, before the first image: so a worker's batches do not hang on what
    came its way before.
    """
    found = Fitting(extractor, size or CPU_BATCH)
    if size is None and device.type == "cuda":
        picture = extractor.prepare(np.full((384, 384, 3), 128, np.uint8))
        while found.size < LARGEST_BATCH:
            found.size = tried = 2 * found.size
            found([picture] * tried)
            if found.size < tried:
                break
        free_memory()
    return found


def free_memory() -> None:
    """Give cached memory back to the GPU, where there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
