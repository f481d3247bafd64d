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
    discard,
    file_sha256,
    flush,
    model_of_run,
    name_file_in_errors,
    read_json,
    write_file,
    write_json,
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


@pytest.mark.parametrize("content", ["x" * 2000, b"x" * 2000], ids=["text", "bytes"])
def test_file_is_replaced_whole_or_what_was_there_stays(
    tmp_path: Path, small_files_only: None, content: str | bytes
) -> None:
    path = tmp_path / "file"
    write_file(path, content[:3])
    with pytest.raises(OSError, match="File too large") as caught:
        write_file(path, content)
    assert caught.value.filename == str(path)
    assert path.read_text() == "xxx"
    assert os.listdir(tmp_path) == ["file"]


def test_json_comes_back_and_is_written_as_transformers_does(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    content = {"b": [1, 2.5, None], "a": {"word": "Bäume"}}
    write_json(path, content)
    assert read_json(path) == content
    assert path.read_text(encoding="utf-8").splitlines()[1:3] == ['  "a": {', '    "word": "Bäume"']


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"[1]", b"3"])
def test_broken_json_is_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not valid JSON: |does not hold a JSON object") as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing")


def test_discarded_folder_is_gone_and_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    for name in ("folder", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / "link").symlink_to("kept")
    discard(tmp_path / "folder")
    discard(tmp_path / "link")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["kept", "kept/file"]


WRITER = """
import sys
from pathlib import Path
from hf_gpt_scratch.runtime.files import write_file
path, letter = Path(sys.argv[1]), sys.argv[2].encode()
for _ in range(20):
    write_file(path, letter * 100_000)
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
        write_file(tmp_path / "file" / "text", "x")
    assert caught.value.filename == str(tmp_path / "file" / "text")


def test_output_folder_of_a_run_is_told_from_a_model_folder(tmp_path: Path) -> None:
    assert model_of_run(tmp_path) is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_of_run(tmp_path) == tmp_path / "model"
    assert model_of_run(tmp_path, "tokenizer.json") is None
    (tmp_path / "config.json").write_text("{}")
    assert model_of_run(tmp_path) is None
