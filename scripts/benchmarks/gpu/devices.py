"""Time and memory on a device; on a CPU, where the rehearsal runs, the memory is that of the whole process."""

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from hf_gpt_scratch.runtime.environment import peak_memory
from hf_gpt_scratch.training.reporting.mfu import synchronize


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """Measure the seconds of work, synchronized before and after."""
    synchronize(torch.device(device))
    started = time.perf_counter()
    work()
    synchronize(torch.device(device))
    return time.perf_counter() - started


def held_bytes(device: str) -> int:
    """Return the bytes that are allocated now."""
    return torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss


def begin_peak(device: str) -> None:
    """Forget the peak so far; a CPU does not."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int:
    """Return the most bytes that were allocated since `begin_peak`."""
    return peak_memory(torch.device(device))


def free_bytes(device: str) -> int:
    """Return the bytes that can be allocated."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
