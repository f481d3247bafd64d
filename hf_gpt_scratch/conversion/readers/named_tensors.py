"""What every reader of a checkpoint hands out: tensors by name, whole or piece by piece."""

import mmap
from collections.abc import Iterable, Iterator, Mapping

import numpy as np


Shape = tuple[int, ...]


class NamedTensors(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by name; each is read when it is asked for. Several threads may ask at once.

    Attributes:
        shapes: of each tensor.
        dtypes: of each tensor, as it is handed out.
    """

    shapes: dict[str, Shape]
    dtypes: dict[str, np.dtype]

    def read_into(self, name: str, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Fill one array after the other with the values of a tensor, in order, and hand each out again.

        Args:
            name: of the tensor.
            pieces: C-contiguous arrays of its dtype that together hold as many values. Each is asked for when the one
                before is done with, so all of them may be the same memory.

        Raises:
            ValueError: the tensor is damaged; nothing but that its last piece is handed out says that it is not.
        """
        values = self[name].reshape(-1)
        position = 0
        for piece in pieces:
            piece.reshape(-1)[...] = values[position : position + piece.size]
            free_pages(values)
            position += piece.size
            yield piece


def free_pages(array: np.ndarray) -> None:
    """Give back the memory that reading a mapped tensor took so far; what is read again comes from the file again."""
    base = array
    while isinstance(base, np.ndarray | memoryview):  # numpy holds the map through a memoryview
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
