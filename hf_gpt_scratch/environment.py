"""What a program runs on: the first thing to say, and the first thing to look at when numbers differ."""

import platform
from importlib.metadata import version
from typing import Any

import torch


KEY_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tiktoken", "huggingface_hub")


def key_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in KEY_PACKAGES}}


def describe_device(device: torch.device) -> str:
    """Name a device as a person would: a GPU by its model, a CPU with its threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def as_line(values: dict[str, Any]) -> str:
    """Write values as `name value, name value`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
