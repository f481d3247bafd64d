"""Proves that every reader hands out a tensor in pieces as it does in whole, with the same memory for all of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors, free_pages
from hf_gpt_scratch.conversion.readers.tensor_bundle import open_tensor_bundle
from hf_gpt_scratch.conversion.readers.tf_checkpoint import open_tf_checkpoint
from hf_gpt_scratch.conversion.readers.torch_checkpoint import open_torch_checkpoint
from hf_gpt_scratch.conversion.writers.safetensors_files import SafetensorsFiles


TENSORS = {
    "float": torch.arange(35.0).reshape(5, 7),
    "half": torch.arange(12.0).half(),
    "bfloat": torch.arange(24.0).bfloat16().reshape(2, 3, 4),
    "none": torch.zeros(0, 3),
}


@pytest.fixture(params=["bundle", "tensorflow", "safetensors", "torch"])
def tensors(request: pytest.FixtureRequest, tmp_path: Path) -> NamedTensors:
    if request.param == "safetensors":
        save_file(TENSORS, tmp_path / "x.safetensors")
        return SafetensorsFiles([tmp_path / "x.safetensors"])
    if request.param == "torch":
        turned = {"turned": torch.arange(12.0).reshape(3, 4).T}  # does not lie in the order of its axes
        torch.save(TENSORS | turned, tmp_path / "x.pth")
        return open_torch_checkpoint(tmp_path / "x.pth")[0]
    folder = request.getfixturevalue("handmade_checkpoint")
    if request.param == "tensorflow":
        request.getfixturevalue("tensorflow")
        return open_tf_checkpoint(folder)
    return open_tensor_bundle(folder)


@pytest.mark.parametrize("step", [1, 5, 10**6])
def test_pieces_are_the_tensor(tensors: NamedTensors, step: int) -> None:
    assert len(tensors) > 3
    for name, array in tensors.items():
        memory = np.empty(step, tensors.dtypes[name])
        sizes = [min(step, array.size - start) for start in range(0, array.size, step)]
        pieces = [piece.copy() for piece in tensors.read_into(name, (memory[:size] for size in sizes))]
        assert [piece.dtype for piece in pieces] == [array.dtype] * len(sizes)
        assert np.array_equal(np.concatenate([memory[:0], *pieces]), array.reshape(-1))


def test_pieces_may_have_any_shape(tensors: NamedTensors) -> None:
    name = next(name for name in tensors if len(tensors.shapes[name]) > 1)
    (piece,) = tensors.read_into(name, [np.empty(tensors.shapes[name], tensors.dtypes[name])])
    assert np.array_equal(piece, tensors[name])


def test_pages_of_what_is_no_map_are_left_alone() -> None:
    array = np.arange(5)
    free_pages(array)
    assert array.tolist() == [0, 1, 2, 3, 4]
