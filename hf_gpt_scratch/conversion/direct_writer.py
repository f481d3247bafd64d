"""A file written from memory past the page cache: copying into the cache takes longer than making the values."""

import contextlib
import errno
import math
import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np


PAGE_BYTES = 4096
BUFFER_BYTES = 4 << 20
NUM_WAITING = 2

Shape = tuple[int, ...]
Empty = Callable[[Shape, np.dtype], np.ndarray]


class DirectWriter:
    """Writes a new file in the background: whole pages directly where the file system can, the rest as usual.

    A few buffers are used in turn: the next is filled while the others are on their way to the disk.

    Attributes:
        position: bytes taken so far.
    """

    def __init__(self, path: Path) -> None:
        self.position = 0
        self._file = path.open("xb", buffering=0)
        self._direct: int | None = None
        if hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):  # not every file system has it
                self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
        self._pool = ThreadPoolExecutor(1)
        self._writes: deque[tuple[Future[None], mmap.mmap]] = deque()
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)  # begins with a page of memory, as a direct write wants it

    def empty(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """An uninitialised array for the values that are written next."""
        num_elements = math.prod(shape)
        if num_elements * dtype.itemsize > BUFFER_BYTES:
            return np.empty(shape, dtype)
        return np.frombuffer(self._buffer, dtype, num_elements).reshape(shape)

    def write(self, values: np.ndarray) -> None:
        """Begin to write the bytes of a C-contiguous array.

        Raises:
            OSError: an earlier write failed.
        """
        data = memoryview(values.reshape(-1)).cast("B")
        for start in range(0, len(data), BUFFER_BYTES):
            self._write_piece(data[start : start + BUFFER_BYTES])

    def _write_piece(self, piece: memoryview) -> None:
        if not np.may_share_memory(piece, self._buffer):
            self._buffer[: len(piece)] = piece
        write = self._pool.submit(self._send, memoryview(self._buffer)[: len(piece)], self.position)
        self.position += len(piece)
        self._writes.append((write, self._buffer))
        self._buffer = self._wait_for_one() if len(self._writes) > NUM_WAITING else mmap.mmap(-1, BUFFER_BYTES)

    def _send(self, data: memoryview, position: int) -> None:
        if self._direct is not None and position % PAGE_BYTES == len(data) % PAGE_BYTES == 0:
            try:
                write_all(self._direct, data, position)
            except OSError as error:
                if error.errno != errno.EINVAL:  # the file system takes the flag, but not the write
                    raise
            else:
                return
        write_all(self._file.fileno(), data, position)

    def _wait_for_one(self) -> mmap.mmap:
        write, buffer = self._writes.popleft()
        write.result()
        return buffer

    def finish(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            OSError: a write failed.
        """
        while self._writes:
            self._wait_for_one()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "DirectWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        if self._direct is not None:
            os.close(self._direct)
        self._file.close()


def write_all(descriptor: int, data: memoryview, position: int) -> None:
    """Write at a position, however few bytes the system takes at a time."""
    os.lseek(descriptor, position, os.SEEK_SET)
    while data:
        data = data[os.write(descriptor, data) :]
