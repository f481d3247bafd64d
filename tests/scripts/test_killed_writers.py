"""Proves for each kind of writer that a signal leaves nothing half written, and that what kill -9 leaves is its own.

Each script is stopped while what it writes lies beside its place, and then ended. Beside it lies what has another
name and is somebody else's: no run ever touches that.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hf_gpt_scratch.data.sample_texts import bundled_text_path


MARK = ".hf_gpt_scratch-unfinished"
TRAIN = [
    *("--vocabulary", "bytes", "--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16", "--max_steps", "3", "--sample_tokens", "0", "--warmup_steps", "1"),
]
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]


@dataclass
class Writer:
    """A command, what it makes, and the pattern of what lies beside that while it is made."""

    command: list[object]
    output: Path
    pattern: str
    again: tuple[str, ...] = ()  # options of the second command


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def start(environment: dict[str, str], project_root: Path, tmp_path: Path) -> Iterator[Callable]:
    """Start a script; what is left of it at the end is killed."""
    started = []

    def start(script: str, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, project_root / "scripts" / script, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def stop_in_mid_write(begin: Callable[[], subprocess.Popen], folder: Path, pattern: str) -> subprocess.Popen:
    """Stop a process while something of that pattern lies there; one that was too fast begins again."""
    for _ in range(40):
        process = begin()
        while process.poll() is None:
            if not list(folder.glob(pattern)):
                time.sleep(0.0005)
                continue
            process.send_signal(signal.SIGSTOP)
            while state_of(process.pid) not in "TZ":
                time.sleep(0.0005)
            if list(folder.glob(pattern)):
                return process
            process.send_signal(signal.SIGCONT)
        assert process.returncode == 0, process.communicate()
    raise AssertionError(f"nothing like {pattern} was ever seen")


def end(process: subprocess.Popen, number: int) -> tuple[int, str]:
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def writers(folder: Path, model: Path) -> dict[str, Writer]:
    text = folder.parent / "long.txt"
    text.write_text(bundled_text_path().read_text(encoding="utf-8") * 10, encoding="utf-8")
    old = folder.parent / "old"
    shutil.copytree(model, old)
    for code in old.glob("*.py"):
        code.write_text("# of an older release\n", encoding="utf-8")
    stock = folder / "stock"
    temperatures = [str(1 + n / 100) for n in range(100)]
    return {
        "export": Writer(
            ["convert_gpt2.py", "--export-stock", "--from-dir", model, "--output", stock, "--no-verify"],
            stock,
            f".stock{MARK}/model*",
        ),
        "shards": Writer(
            ["prepare_data.py", "--source", text, "--output", folder / "data", "--shard_tokens", 500],
            folder / "data",
            f"data/.*{MARK}",
        ),
        "figures": Writer(
            ["plot_decoding.py", "--output", folder / "bars", "--temperature", *temperatures],
            folder / "bars.pdf",
            f".bars.pdf{MARK}",
        ),
        "run": Writer(
            ["train.py", *TRAIN, "--output_dir", folder / "run"],
            folder / "run" / "model",
            f"run/.model{MARK}/*.safetensors",
            ("--resume",),
        ),
        "code": Writer(["push_to_hub.py", "--update-code", old], old / "config.json", f"../old/.*{MARK}"),
    }


KINDS = ["export", "shards", "figures", "run", "code"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.resilience) for kind in KINDS[1:]] + KINDS[:1])
def test_end_in_mid_write(
    start: Callable, finished_folder: Path, tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    writer = writers(folder, finished_folder)[kind]
    strangers = [folder / name for name in (f".{writer.output.name}-x1y2z3", f".{writer.output.name}.unfinished")]
    for stranger in strangers:
        stranger.mkdir()
        (stranger / "file").write_text("somebody else's")

    def begin() -> subprocess.Popen:
        for made in (writer.output, folder / "data", folder / "run"):
            if kind != "code" and made.exists():  # a process that was too fast
                shutil.rmtree(made) if made.is_dir() else made.unlink()
        if kind == "code":
            (writer.output.parent / "modeling_gpt_scratch.py").write_text("# of an older release\n")
        return start(*writer.command)

    process = stop_in_mid_write(begin, folder, writer.pattern)
    code, errors = end(process, number)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert list(folder.glob(writer.pattern)), "what is to be recognized"
    elif code == 0:  # nothing was left to do but to give the result its name
        assert writer.output.exists()
    else:
        assert code == 128 + number
        expected = "stopped by signal" if kind == "run" else f"ended by {number.name}"
        assert errors.splitlines()[-1].startswith(expected)
        assert not list(tmp_path.rglob(f"*{MARK}*"))

    again = start(*writer.command, *writer.again)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert writer.output.exists()
    assert not list(tmp_path.rglob(f"*{MARK}*"))
    assert all((stranger / "file").is_file() for stranger in strangers)


def test_what_another_process_is_writing_is_left_to_it(start: Callable, finished_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    writer = writers(folder, finished_folder)["export"]

    def begin() -> subprocess.Popen:
        shutil.rmtree(writer.output, ignore_errors=True)  # of a process that was too fast
        return start(*writer.command)

    first = stop_in_mid_write(begin, folder, writer.pattern)
    second = start(*writer.command)
    _, errors = second.communicate(timeout=120)
    assert (second.returncode, errors) == (
        1,
        f"error: another process is writing {writer.output}: wait for it, or choose another name\n",
    )
    assert end(first, signal.SIGCONT)[0] == 0
    assert os.listdir(folder) == ["stock"]


def test_proof_of_a_conversion_ends_with_it(start: Callable, finished_folder: Path, tmp_path: Path) -> None:
    """The fresh process that loads the folder is no orphan after kill -9, and its files lie in the folder."""
    command = ["convert_gpt2.py", "--export-stock", "--from-dir", finished_folder, "--output", tmp_path / "stock"]
    process = start(*command)
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(1)  # it has read what it is asked, and imports torch
    assert list(tmp_path.glob(f".stock{MARK}/.verify-*"))
    end(process, signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    again = start(*command)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert os.listdir(tmp_path) == ["stock"]
    assert not list((tmp_path / "stock").glob(".*"))


def test_hang_up_that_is_ignored_stays_so(
    environment: dict[str, str], finished_folder: Path, project_root: Path, tmp_path: Path
) -> None:
    """As under nohup."""
    folder = tmp_path / "work"
    folder.mkdir()
    writer = writers(folder, finished_folder)["shards"]
    arguments = [str(word) for word in writer.command[1:]]
    command = ["nohup", sys.executable, project_root / "scripts" / writer.command[0], *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    while not list(folder.glob("data/train-*")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (folder / "data" / "index.json").is_file()
