"""Checkpoints of torch.save, as numpy arrays: the only place of the converter that imports torch, and torch.load."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors
from hf_gpt_scratch.runtime.out_of_memory import is_out_of_memory


if TYPE_CHECKING:
    import torch

# Where programs put the weights in what they save: the tutorial, nanoGPT, Lightning.
WEIGHT_KEYS = ("model_state_dict", "model", "state_dict")


class TorchTensors(NamedTensors):
    """A state dict as a mapping to read-only numpy arrays; bfloat16 becomes float32, which holds it exactly."""

    def __init__(self, tensors: Mapping[str, "torch.Tensor"]) -> None:
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        # One element stands for all: converting a tensor of no elements costs nothing.
        self.dtypes = {name: _to_numpy(tensor.flatten()[:0]).dtype for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        array = _to_numpy(self._tensors[name])
        array.flags.writeable = False
        return array


def _to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    import torch

    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def open_torch_checkpoint(path: Path) -> tuple[TorchTensors, dict[str, Any], dict[str, str]]:
    """Open a .pth, .pt or .bin file of torch.save, memory-mapped. No code in it is ever run.

    Returns the tensors; the `model_args` of nanoGPT if there are any; what else the file holds, and why it is dropped.
    ValueError: the file is damaged, holds something else than tensors and plain values, or no state dict.
    """
    import torch

    _refuse_corruption(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the kind depends on what the file holds
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{path} cannot be read as weights only ({reason}): save the state dict alone, "
            "torch.save(model.state_dict(), ...)"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict()")
    key = next((key for key in WEIGHT_KEYS if isinstance(content.get(key), dict)), None)
    state_dict = content if key is None else content[key]
    non_tensors = [
        str(name)
        for name, value in state_dict.items()
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized
    ]
    if non_tensors:
        raise ValueError(
            f"{path} holds {', '.join(non_tensors[:8])}, which are not plain tensors: save model.state_dict()"
        )
    beside = {} if key is None else {name: value for name, value in content.items() if name != key}
    model_args = beside.get("model_args")
    others = {str(name): f"not the weights, which are in {key!r}" for name in beside}
    return TorchTensors(state_dict), model_args if isinstance(model_args, dict) else {}, others


def _refuse_corruption(path: Path) -> None:
    """Compare the CRC32 of each part of the file; torch.load does not, and would load a flipped bit as a weight."""
    try:
        with zipfile.ZipFile(path) as archive:
            corrupt = archive.testzip()
    except zipfile.BadZipFile:
        raise ValueError(
            f"{path} is not a file of torch.save, or is truncated: fetch it again; "
            "a file of torch before 1.6 must be saved again with a later one"
        ) from None
    if corrupt is not None:
        raise ValueError(f"{path} is corrupt in {corrupt} (its CRC32 does not fit): fetch it again")
