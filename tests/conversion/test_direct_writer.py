"""Proves that a file written past the page cache holds what was given, on file systems with and without that."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.conversion import direct_writer
from hf_gpt_scratch.conversion.direct_writer import BUFFER_BYTES, PAGE_BYTES, DirectWriter


WHOLE = [PAGE_BYTES, BUFFER_BYTES, 2 * BUFFER_BYTES + PAGE_BYTES]
ODD = [1, PAGE_BYTES - 2, BUFFER_BYTES + 7, PAGE_BYTES, 3 * BUFFER_BYTES, 0, 5]


def pieces(sizes: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, np.uint8) for size in sizes]


def write(path: Path, arrays: list[np.ndarray]) -> None:
    with DirectWriter(path) as file:
        for array in arrays:
            file.write(array)
        file.finish()
        assert file.position == sum(array.nbytes for array in arrays)


@pytest.fixture(params=["as it is", "no O_DIRECT", "O_DIRECT that fails"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the file system takes direct writes; what this machine's does not do is made so."""
    original_open, original_write = os.open, os.write
    direct: set[int] = set()

    def open_(path: str | Path, flags: int, *args: int) -> int:
        if flags & os.O_DIRECT and request.param == "no O_DIRECT":
            raise OSError(errno.EINVAL, "Invalid argument")
        descriptor = original_open(path, flags, *args)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def write_(descriptor: int, data: memoryview) -> int:
        if descriptor in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original_write(descriptor, data)

    if request.param != "as it is":
        monkeypatch.setattr(os, "open", open_)
        monkeypatch.setattr(os, "write", write_)
    return request.param


@pytest.mark.parametrize(
    "sizes", [WHOLE, ODD, WHOLE + ODD + WHOLE, [], [0]], ids=["whole", "odd", "mixed", "none", "0"]
)
def test_the_file_holds_what_was_given(kind: str, sizes: list[int], tmp_path: Path) -> None:
    arrays = pieces(sizes)
    write(tmp_path / "file", arrays)
    assert (tmp_path / "file").read_bytes() == b"".join(array.tobytes() for array in arrays)


def test_arrays_of_the_writer_need_no_copy_and_are_used_in_turn(tmp_path: Path) -> None:
    expected = b""
    addresses = set()
    with DirectWriter(tmp_path / "file") as file:
        for number in range(9):
            values = file.empty((4, PAGE_BYTES // 4), np.dtype("<f4"))
            addresses.add(values.__array_interface__["data"][0])
            values[...] = number
            expected += values.tobytes()
            file.write(values)
        file.finish()
        assert file.empty((BUFFER_BYTES + 1,), np.dtype("u1")).nbytes == BUFFER_BYTES + 1
    assert (tmp_path / "file").read_bytes() == expected
    assert len(addresses) == direct_writer.NUM_WAITING + 1
    assert all(address % PAGE_BYTES == 0 for address in addresses)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")
def test_whole_pages_go_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the tests above: without direct writes they would pass too."""
    import fcntl

    original, flags = os.write, []

    def write_(descriptor: int, data: memoryview) -> int:
        flags.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        return original(descriptor, data)

    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of temporary files has no direct writes")
    monkeypatch.setattr(os, "write", write_)
    write(tmp_path / "file", pieces([PAGE_BYTES, BUFFER_BYTES, 3, PAGE_BYTES]))
    assert [bool(flag) for flag in flags] == [True, True, False, False]


def test_a_write_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", pieces([5]))
    with pytest.raises(FileExistsError):
        DirectWriter(tmp_path / "file")
