"""Time and memory on a device; on a CPU, where the rehearsal runs, the memory is that of the whole process."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation import CompileConfig

from hf_gpt_scratch.runtime.environment import peak_memory
from hf_gpt_scratch.training.peak_flops import synchronize


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """Measure the seconds of work, synchronized before and after."""
    synchronize(torch.device(device))
    started = time.perf_counter()
    work()
    synchronize(torch.device(device))
    return time.perf_counter() - started


def begin_peak(device: str) -> None:
    """Forget the peak so far; a CPU does not."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int:
    """Return the most bytes that were allocated since `begin_peak`."""
    return peak_memory(torch.device(device))


def compile_config(mode: dict[str, Any], **options: Any) -> CompileConfig:
    """Return how `generate()` compiles a step with a static cache; `mode` are keywords of torch.compile."""
    config: Any = CompileConfig(**{"mode": "default"} | mode, **options)
    config._compile_all_devices = True  # on a CPU the library compiles only if told so
    return config
