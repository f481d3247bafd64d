"""The interface that every checkpoint reader shares: a mapping from name to tensor."""

import mmap
from collections.abc import Iterator, Mapping

import numpy as np


Shape = tuple[int, ...]


class NamedTensors(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by name; each is read, and its checksum verified, when it is asked for."""

    shapes: dict[str, Shape]
    dtypes: dict[str, np.dtype]  # as they are returned

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # Mapping's own would read the tensor


def free_pages(array: np.ndarray) -> None:
    """Release the resident pages of a memory-mapped array; reading it again loads them from the file again."""
    base: object = array
    while isinstance(base, np.ndarray | memoryview):  # numpy holds the map through a memoryview
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
