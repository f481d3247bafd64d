"""Proves that hashes are those of hashlib, that writing is all or nothing, and that its errors name the file."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_gpt_scratch.runtime.files import (
    UNFINISHED_MARK,
    atomic_folder,
    clear_unfinished,
    file_sha256,
    flush,
    name_file_in_errors,
    write_text,
    write_whole,
)


@pytest.mark.parametrize("size", [0, 1, 1_000_003])
def test_hash_is_that_of_the_content(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


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
        with pytest.raises(OSError, match="File too large") as caught, name_file_in_errors(path):
            write()
        assert caught.value.filename == str(path), name
        assert caught.value.strerror == os.strerror(caught.value.errno)


def test_error_that_names_a_file_or_none_of_the_system_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, name_file_in_errors(tmp_path / "other"):
        (tmp_path / "missing").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(OSError, match="^a line of ours$"), name_file_in_errors(tmp_path):
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


WRITER = """
import sys
from pathlib import Path
from hf_gpt_scratch.runtime.files import write_whole
path, letter = Path(sys.argv[1]), sys.argv[2].encode()
for _ in range(20):
    write_whole(path, letter * 100_000)
"""


def test_two_processes_that_write_one_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "file"
    command = [sys.executable, "-c", WRITER, str(path)]
    processes = [subprocess.Popen([*command, letter]) for letter in "abc"]
    seen = set()
    while any(process.poll() is None for process in processes):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 100_000
            seen |= set(content)
            assert len(set(content)) == 1
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert seen <= set(b"abc")
    assert os.listdir(tmp_path) == ["file"]


def leave(output: Path, *names: str) -> None:
    """Leave behind what a killed writer leaves."""
    for name in names:
        path = output.with_name(f".{output.name}{UNFINISHED_MARK}{name}")
        path.write_text("") if name == ".lock" else path.mkdir()
        if path.is_dir():
            (path / "file").write_text(name)


@pytest.mark.parametrize("replace", [False, True])
def test_folder_that_was_moved_away_when_the_kill_came_is_back(tmp_path: Path, replace: bool) -> None:
    output = tmp_path / "model"
    leave(output, "", "-replaced", ".lock")
    if not replace:
        with pytest.raises(FileExistsError, match="exists already"), atomic_folder(output):
            pass
        assert (output / "file").read_text() == "-replaced"
    else:
        with pytest.raises(OSError, match="full"), atomic_folder(output, replace=True):
            raise OSError("full")
        assert (output / "file").read_text() == "-replaced"
        with atomic_folder(output, replace=True) as folder:
            (folder / "new").write_text("x")
        assert [path.name for path in output.iterdir()] == ["new"]
    assert os.listdir(tmp_path) == ["model"]


def test_only_what_bears_the_mark_and_is_not_being_written_is_cleared(tmp_path: Path) -> None:
    leave(tmp_path / "left", "", ".lock")
    strangers = [tmp_path / name for name in (".left-x1y2z3", "left.partial", "left.tmp", ".left.unfinished", "left")]
    for stranger in strangers:
        stranger.mkdir()
    with atomic_folder(tmp_path / "other") as folder:
        clear_unfinished(tmp_path)
        assert folder.is_dir()
        assert not (tmp_path / f".left{UNFINISHED_MARK}").exists()
    assert sorted(tmp_path.iterdir()) == sorted([*strangers, tmp_path / "other"])


def test_error_names_the_output_and_not_its_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="directory|exists") as caught:
        write_text(tmp_path / "file" / "text", "x")
    assert caught.value.filename == str(tmp_path / "file" / "text")
