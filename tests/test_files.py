"""Proves that hashes are those of hashlib, that writing is all or nothing, and that its errors name the file."""

import hashlib
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_gpt_scratch.files import errors_name, flush, sha256_of, write_text, write_whole


@pytest.mark.parametrize("size", [0, 1, 1_000_003])
def test_hash_is_that_of_the_content(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_and_folders_can_be_flushed_and_missing_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    flush(tmp_path / "file")
    flush(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        flush(tmp_path / "nothing")


@pytest.fixture
def small_files_only():
    """Writing beyond 1,000 bytes of a file fails, as on a full disk; Python has SIGXFSZ ignored."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_error_of_any_writer_names_the_file(tmp_path: Path, small_files_only: None) -> None:
    path = tmp_path / "file"
    writers = {
        "python": lambda: path.write_bytes(bytes(2000)),
        "safetensors": lambda: save_file({"x": torch.zeros(1000)}, path),
    }
    for name, write in writers.items():
        with pytest.raises(OSError, match="File too large") as caught, errors_name(path):
            write()
        assert caught.value.filename == str(path), name
        assert caught.value.strerror == os.strerror(caught.value.errno)


def test_error_that_names_a_file_or_none_of_the_system_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, errors_name(tmp_path / "other"):
        (tmp_path / "missing").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(OSError, match="^a line of ours$"), errors_name(tmp_path):
        raise OSError("a line of ours")


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, small_files_only: None) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(OSError, match="File too large"):
        write_text(path, "x" * 2000)
    assert path.read_text() == "old"


def test_file_is_written_whole_or_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one", memoryview(b" two"))
    assert path.read_bytes() == b"one two"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, old[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_whole(path, b"longer than there is room for")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"one two"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
