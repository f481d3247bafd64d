"""Proves that files filled by several threads hold what was given, and that an error in a thread is told."""

import errno
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.conversion.writers import parallel_writer
from hf_gpt_scratch.conversion.writers.parallel_writer import (
    NUM_THREADS,
    SMALL_BYTES,
    Buffer,
    ParallelWriter,
    reserve,
    run_jobs,
)


def pieces(sizes: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, np.uint8) for size in sizes]


@pytest.mark.parametrize(
    "kind", ["as it is", "no preallocation", "preallocation that fails", "no advice", "advice that fails"]
)
def test_the_file_holds_what_was_given_by_all_threads(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    name = "posix_fallocate" if "preallocation" in kind else "posix_fadvise"
    if kind.startswith("no "):
        monkeypatch.delattr(os, name)
    elif kind.endswith("fails"):
        monkeypatch.setattr(os, name, refuse)
    arrays = pieces([1, 4096, SMALL_BYTES + 7, 0, 3 * SMALL_BYTES, 5] * 8)
    reserve(tmp_path / "file", sum(len(array) for array in arrays))
    assert (tmp_path / "file").stat().st_size == sum(len(array) for array in arrays)
    writer, position, jobs = ParallelWriter(), 0, []
    for array in arrays:
        jobs.append(lambda buffer, at=position, array=array: writer.write(tmp_path / "file", at, array))
        position += len(array)
    run_jobs(reversed(jobs))
    assert (tmp_path / "file").read_bytes() == b"".join(array.tobytes() for array in arrays)


def test_reserving_takes_the_place_and_never_a_file_that_is_there(tmp_path: Path) -> None:
    reserve(tmp_path / "file", 1 << 20)
    assert (tmp_path / "file").stat().st_size == 1 << 20
    with pytest.raises(FileExistsError):
        reserve(tmp_path / "file", 5)
    assert (tmp_path / "file").stat().st_size == 1 << 20
    reserve(tmp_path / "empty", 0)
    assert (tmp_path / "empty").stat().st_size == 0


def test_a_full_disk_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device.*file"):
        reserve(tmp_path / "file", 5)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="only where the system can be told")
def test_what_is_large_is_sent_to_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *advice: told.append(advice))
    reserve(tmp_path / "file", 3 * SMALL_BYTES)
    large, small = pieces([2 * SMALL_BYTES + 5, SMALL_BYTES - 1])
    ParallelWriter().write(tmp_path / "file", 3, large)
    ParallelWriter().write(tmp_path / "file", 0, small)
    assert told == [(3, len(large), os.POSIX_FADV_DONTNEED)]
    written = small.tobytes() + large.tobytes()[len(small) - 3 :]
    assert (tmp_path / "file").read_bytes() == written.ljust(3 * SMALL_BYTES, b"\0")


def test_where_the_system_takes_few_bytes_at_a_time_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def write(self, data: memoryview) -> int:
            return super().write(data[:1000])

    reserve(tmp_path / "file", 5000)
    (array,) = pieces([4321])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda self, mode, buffering: Slow(self, mode))
        ParallelWriter().write(tmp_path / "file", 7, array)
    assert (tmp_path / "file").read_bytes()[7:4328] == array.tobytes()


def test_one_write_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that overlapped would be seen: each looks whether the other is inside, for a while."""
    inside, most = 0, []

    def watch(*_: int) -> None:
        nonlocal inside
        inside += 1
        most.append(inside)
        threading.Event().wait(0.005)
        inside -= 1

    monkeypatch.setattr(parallel_writer, "begin_to_flush", watch)
    reserve(tmp_path / "file", SMALL_BYTES)
    writer = ParallelWriter()
    run_jobs([lambda buffer: writer.write(tmp_path / "file", 0, np.zeros(SMALL_BYTES, np.uint8))] * 10)
    assert most == [1] * 10


def test_a_buffer_is_used_again_and_grows() -> None:
    buffer = Buffer()
    first = buffer.empty((1000, 4), np.dtype("<f4"))
    again = buffer.empty((5, 3), np.dtype("<f2"))
    assert (again.shape, again.dtype) == ((5, 3), np.float16)
    assert np.shares_memory(first, again)
    assert buffer.empty((1 << 20,), np.dtype("u1")).nbytes == 1 << 20
    assert buffer.empty((0, 3), np.dtype("<f4")).shape == (0, 3)


def test_jobs_run_at_once_and_each_has_a_buffer_of_its_own() -> None:
    together = threading.Barrier(NUM_THREADS, timeout=20)
    buffers = []

    def job(buffer: Buffer) -> None:
        buffers.append(buffer)
        together.wait()  # would never end if they ran one after the other

    run_jobs([job] * NUM_THREADS)
    assert len(set(map(id, buffers))) == NUM_THREADS


def test_the_first_error_is_told_and_what_has_not_begun_is_left_out(tmp_path: Path) -> None:
    done = []

    def fail(buffer: Buffer) -> None:
        raise ValueError("damaged")

    def work(buffer: Buffer) -> None:
        threading.Event().wait(0.01)
        done.append(1)

    with pytest.raises(ValueError, match="damaged"):
        run_jobs([fail, *[work] * 200])
    assert len(done) < 100
    run_jobs([work] * 5)


def test_a_write_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ParallelWriter().write(tmp_path / "gone", 0, np.zeros(5, np.uint8))
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            ParallelWriter().write(Path("/dev/full"), 0, np.zeros(5, np.uint8))
