"""Files that several threads fill, each its own parts, and that go to the disk while the next parts are made."""

import errno
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import numpy as np

from hf_gpt_scratch.conversion.readers.named_tensors import Shape
from hf_gpt_scratch.runtime.files import name_file_in_errors


NUM_THREADS = 2  # more hold more memory and wait for each other
PIECE_BYTES = 4 << 20  # of a write
SMALL_BYTES = 64 << 10  # a smaller write is left to the final flush
UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL)  # what a kernel or a file system answers that does not know a request


class Buffer:
    """Memory of a thread, used again and again: fresh memory costs a page fault for every page."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def empty(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """An uninitialised array, which lies where the last one lay."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > self._memory.nbytes:
            self._memory = np.empty(num_bytes, np.uint8)
        return self._memory[:num_bytes].view(dtype).reshape(shape)


def run_jobs(jobs: Iterable[Callable[[Buffer], None]]) -> None:
    """Do all jobs in a few threads, each with the buffer of its thread.

    Raises:
        Exception: what the first job that failed raised; those that have not begun are left out.
    """
    buffers: SimpleQueue[Buffer] = SimpleQueue()
    for _ in range(NUM_THREADS):
        buffers.put(Buffer())

    def run(job: Callable[[Buffer], None]) -> None:
        buffer = buffers.get()
        try:
            job(buffer)
        finally:
            buffers.put(buffer)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        running = [pool.submit(run, job) for job in jobs]
        try:
            for job in running:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def reserve(path: Path, num_bytes: int) -> None:
    """Make a new file of zeros whose place on the disk is taken: filling it is then faster, and a full disk is told.

    Raises:
        OSError: the file is there already, or the disk is full.
    """
    with name_file_in_errors(path), path.open("xb") as file:
        file.truncate(num_bytes)
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


class ParallelWriter:
    """Writes arrays into files that are there already, from any thread."""

    def __init__(self) -> None:
        # The kernel takes one write into a file at a time, and whoever waits inside it for another burns a core.
        self._lock = Lock()

    def write(self, path: Path, position: int, values: np.ndarray) -> None:
        """Write the bytes of a C-contiguous array; Linux begins at once to put them on the disk.

        Raises:
            OSError: it cannot be written.
        """
        data = memoryview(values.reshape(-1).view(np.uint8))
        with name_file_in_errors(path), path.open("r+b", buffering=0) as file, self._lock:
            file.seek(position)
            while data:
                data = data[file.write(data) :]
            if values.nbytes >= SMALL_BYTES:
                begin_to_flush(file.fileno(), position, values.nbytes)


def begin_to_flush(descriptor: int, position: int, num_bytes: int) -> None:
    """Have Linux put a part of a file on the disk, and not wait for it.

    That it will not be needed is what the system is told. What is not on the disk yet stays in memory all the same,
    so that the hash of the file is made without reading it back.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # an advice: the final flush does what it did not
            os.posix_fadvise(descriptor, position, num_bytes, os.POSIX_FADV_DONTNEED)
