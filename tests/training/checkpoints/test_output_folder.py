"""Proves that one process at a time has an output folder, that a kill frees it, and what is deleted at a start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hf_gpt_scratch.training.checkpoints.output_folder import FolderLock, claim_folder, clear_leftovers, is_lock
from hf_gpt_scratch.training.settings import TrainingSettings


HOLDER = """
import sys, time
from pathlib import Path
from hf_gpt_scratch.training.checkpoints.output_folder import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
time.sleep(60)
"""


def test_second_taker_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as first, FolderLock(tmp_path) as second:
        first.take()
        first.take()  # keeping it is no mistake
        begun = time.perf_counter()
        with pytest.raises(BlockingIOError) as caught:
            second.take()
        assert time.perf_counter() - begun < 0.1
        assert f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
    with FolderLock(tmp_path) as third:
        third.take()


def test_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "taken\n"
    with FolderLock(tmp_path) as lock:
        with pytest.raises(BlockingIOError, match=f"process {holder.pid} on"):
            lock.take()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
        lock.take()


def test_run_that_begins_while_the_folder_is_looked_at_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Path.iterdir
    with FolderLock(tmp_path) as first, FolderLock(tmp_path) as second:

        def begin_and_look(folder: Path) -> Iterator[Path]:
            first.take()
            (tmp_path / "settings.json").touch()
            return look(folder)

        monkeypatch.setattr(Path, "iterdir", begin_and_look)
        with pytest.raises(BlockingIOError, match=f"is in use by process {os.getpid()} on"):
            claim_folder(TrainingSettings(output_dir=str(tmp_path)), second, make=True)


def test_lock_that_is_written_while_it_is_read_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, read = tmp_path / ".lock", Path.read_text
    lock.touch()

    def read_then_write(path: Path, **options: str) -> str:
        content = read(path, **options)
        lock.write_text("process 1 on here", encoding="utf-8")
        return content

    monkeypatch.setattr(Path, "read_text", read_then_write)
    assert is_lock(lock)


def test_foreign_folder_gets_no_lock_file(tmp_path: Path) -> None:
    (tmp_path / "photo").write_text("x")
    with (
        FolderLock(tmp_path) as lock,
        pytest.raises(FileExistsError, match="is not empty"),
    ):
        claim_folder(TrainingSettings(output_dir=str(tmp_path)), lock, make=True)
    assert [path.name for path in tmp_path.iterdir()] == ["photo"]


def test_foreign_file_of_the_lock_s_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    with FolderLock(tmp_path) as lock, pytest.raises(FileExistsError, match="is not empty"):
        claim_folder(TrainingSettings(output_dir=str(tmp_path)), lock, make=True)
    assert (tmp_path / ".lock").read_text() == "mine"


@pytest.mark.parametrize("inner", ["model", "model/new", "checkpoints/b", "sub"])
def test_folder_in_that_of_another_run_is_refused(tmp_path: Path, inner: str) -> None:
    """The outer run replaces its own `model/` whole."""
    with FolderLock(tmp_path) as outer:
        outer.take()
    (tmp_path / "history.jsonl").touch()
    folder = tmp_path / inner
    with FolderLock(folder) as lock, pytest.raises(FileExistsError, match=f"lies in that of another run, {tmp_path}"):
        claim_folder(TrainingSettings(output_dir=str(folder)), lock, make=True)
    assert not folder.exists()


def test_folder_among_the_texts_is_refused(tmp_path: Path) -> None:
    """Its history and card would be texts of the next run."""
    settings = TrainingSettings(output_dir=str(tmp_path / "runs" / "a"), train_file=[str(tmp_path)])
    with FolderLock(tmp_path / "runs" / "a") as lock, pytest.raises(FileExistsError, match="lies in .* are texts to"):
        claim_folder(settings, lock, make=True)
    assert list(tmp_path.iterdir()) == []


def test_folder_is_made_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    settings = TrainingSettings(output_dir=str(folder))
    with FolderLock(folder) as lock:
        claim_folder(settings, lock, make=False)
        assert list(tmp_path.iterdir()) == []
        claim_folder(settings, lock, make=True)
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_run_that_began_between_the_look_and_the_lock_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes find no folder; one runs to its end before the other takes the lock."""
    folder = tmp_path / "run"
    take: Callable[[FolderLock], None] = FolderLock.take

    def late(lock: FolderLock) -> None:
        (folder / "history.jsonl").write_text("{}\n")
        take(lock)

    monkeypatch.setattr(FolderLock, "take", late)
    with FolderLock(folder) as lock, pytest.raises(FileExistsError, match="holds another run"):
        claim_folder(TrainingSettings(output_dir=str(folder)), lock, make=True)


def test_what_has_the_name_of_a_leftover_and_another_kind_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "unfinished-model").mkdir()
    for name in (".my-model-card", ".model-notes", "checkpoints/.step-00000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / "notes.tmp").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    clear_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_kill_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    mark = ".hf_gpt_scratch-unfinished"
    folders = (f"checkpoints/.step-00000002{mark}", f"checkpoints/.step-00000001{mark}-replaced")
    folders += ("checkpoints/step-00000001", f".model{mark}", f".model{mark}-replaced", "model", "unfinished-model")
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("x")
    for name in (f".model{mark}.lock", f".loss.png{mark}", f".loss.png{mark}.lock", "loss.png", "history.jsonl"):
        (tmp_path / name).write_text("x")
    clear_leftovers(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.name != "config.json"}
    assert left == {"checkpoints", "checkpoints/step-00000001", "model", "loss.png", "history.jsonl"}
