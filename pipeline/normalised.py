"""Batches of pictures as networks read them: each of the 256 values a channel can have is looked up in a table."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch


class Normalised:
    """Pictures (S, S, 3) uint8 of one size -> (B, 3, S, S) float32 on the device, in channels-last memory.

    `table`: (256, 3) float32, what each value of each channel becomes. Looking it up is several times as fast as the
    arithmetic, and gives its very bits.
    """

    def __init__(self, table: np.ndarray, device: torch.device) -> None:
        self._device = device
        self._for_cpu = np.ascontiguousarray(table, np.float32)[None]
        self._for_gpu = torch.from_numpy(self._for_cpu[0]).to(device)

    def __call__(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        if self._device.type == "cpu":
            batch = np.empty((len(pictures), *pictures[0].shape), np.float32)
            for picture, place in zip(pictures, batch, strict=True):
                cv2.LUT(picture, self._for_cpu, dst=place)
            return torch.from_numpy(batch).permute(0, 3, 1, 2)
        values = torch.from_numpy(np.stack(pictures)).to(self._device).int()
        return torch.stack([self._for_gpu[:, channel][values[..., channel]] for channel in range(3)], -1).permute(
            0, 3, 1, 2
        )


def standardised(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The table (256, 3) of (x / 255 - mean) / std."""
    values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    return (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
