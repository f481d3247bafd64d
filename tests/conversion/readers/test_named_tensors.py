"""Proves that looking at a mapping of tensors reads none, and that only mapped pages are released."""

import numpy as np

from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors, free_pages


class Unreadable(NamedTensors):
    """Knows its shapes, and fails when a tensor is asked for."""

    shapes = {"b": (2,), "a": (0, 3)}
    dtypes = dict.fromkeys(shapes, np.dtype("<f4"))

    def __getitem__(self, name: str) -> np.ndarray:
        raise OSError(name)


def test_looking_reads_nothing() -> None:
    tensors = Unreadable()
    assert list(tensors) == ["b", "a"]
    assert len(tensors) == 2
    assert "a" in tensors
    assert "c" not in tensors


def test_pages_of_what_is_not_mapped_are_left_alone() -> None:
    array = np.arange(5)
    free_pages(array)
    assert array.tolist() == [0, 1, 2, 3, 4]
