"""Versions, device, processor and memory of a run: the first thing to look at when numbers differ."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch


KEY_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tiktoken", "huggingface_hub")


def key_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in KEY_PACKAGES}}


def describe_device(device: torch.device) -> str:
    """Name a device as a person would: a GPU by its model, a CPU with its threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def describe_processor() -> str:
    """Name what decides how a CPU sums: the widest instructions that PyTorch uses, and the maker, which MKL asks."""
    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return f"{torch.backends.cpu.get_cpu_capability()} {facts.get('cpu_name', '')}".strip()


def peak_memory(device: torch.device) -> int:
    """Return the bytes that this process has held at most: allocated by PyTorch on a GPU, else resident.

    Outside Linux and Windows, which keep the maximum, it is what is resident now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)


def as_line(values: dict[str, Any]) -> str:
    """Write values as `name value, name value`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
