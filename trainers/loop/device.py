"""Where a model runs: the CPU, a GPU, or as many processes as torchrun has started, by Hugging Face's accelerate."""

import ctypes
import os
import shutil
from contextlib import nullcontext, suppress

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState

from pipeline.errors import PairmillError

USE_CPU = "ACCELERATE_USE_CPU"
"""accelerate's own variable: "true" leaves the GPUs alone."""


MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20)}
"""glibc's numbers of the options (malloc.h), and what they are set to."""


def best_device() -> torch.device:
    wanted = os.environ.get(USE_CPU, "").lower() not in ("1", "true", "yes")
    return torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> "torch.autocast | nullcontext[None]":
    """bf16 on a GPU, float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def new_accelerator() -> Accelerator:
    """For one training, on the best device, at its `precision`; of the processes that torchrun started, one rank's.

    Which parameters a step leaves out depends on the objectives that it draws, so each step looks for them.
    """
    on_cpu = best_device().type == "cpu"
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
    return Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else "bf16", kwargs_handlers=[parallel])


def leave_ranks() -> None:
    """End what connects this process to others, if any; it can train no more."""
    PartialState().destroy_process_group()


def check_compiler() -> None:
    """Raise PairmillError where `torch.compile` has nothing to make a CPU's kernels with."""
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if best_device().type == "cpu" and not any(map(shutil.which, compilers)):
        raise PairmillError("compile = true needs a C++ compiler", "install g++, or set compile = false")


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its C library is glibc.

    By itself glibc hands large blocks back to the kernel, which clears each page again for the next: some 200 000 page
    faults in a step of BERT's size on a CPU, and 2 to 3 % of its time.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in MALLOPT.values():
            mallopt(option, value)
