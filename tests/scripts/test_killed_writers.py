"""Proves for each kind of writer that it is durable, and that a signal leaves nothing half written.

The kinds: checkpoint, repository with its card, settings, history and loss plot (train.py), tokens and their index and
note (prepare_data.py), figure (plot_decoding.py), converted folder, also with ONNX files (convert_gpt2.py), code
update (push_to_hub.py), vocabulary (train_tokenizer.py; train.py with --minutes), unfinished model (--push_steps).
Downloads are killed where they have a server: released files in tests/conversion/download, the sample text in
tests/data/test_sample_texts.py. A push writes nothing here; tests/sharing kills it.

Each script is stopped while what it writes lies beside its place, or right before it is renamed, and then ended.
Beside it lies what has another name and is somebody else's: no run ever touches that.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from tests.markers import nightly


MARK = ".hf_gpt_scratch-unfinished"
TRAIN = [
    *("--vocabulary", "bytes", "--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16", "--max_steps", "3", "--sample_tokens", "0", "--warmup_steps", "1"),
]
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
# Loaded by Python itself: notes each fsync and rename, and kills the process right before one of them.
SITE_CUSTOMIZE = """
import json, os, signal, sys

events, fsync = os.open(os.environ["TEST_EVENTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.fsync

def note(*event):
    os.write(events, (json.dumps(event) + "\\n").encode())

def state(path):
    status = os.stat(path)
    return [status.st_mtime_ns, status.st_size]

def noted_fsync(descriptor):
    fsync(descriptor)
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    note("fsync", path, state(path))

def hook(event, arguments):
    if event != "os.rename":
        return
    source, target = (os.path.abspath(os.fsdecode(path)) for path in arguments[:2])
    below = [os.path.join(folder, name) for folder, _, names in os.walk(source) for name in ("", *names)]
    note("rename", source, target, {os.path.normpath(path): state(path) for path in below or [source]})
    if os.path.basename(target) == os.environ.get("TEST_KILL_AT"):
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = noted_fsync
sys.addaudithook(hook)
"""


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

    def start(
        script: str, *arguments: object, variables: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen:
        command = [sys.executable, project_root / "scripts" / script, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=tmp_path, env={**environment, **variables}, **pipes))
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
        "checkpoint": Writer(
            ["train.py", *TRAIN, "--output_dir", folder / "run"],
            folder / "run" / "checkpoints" / "step-00000003",
            f"run/checkpoints/.step-00000003{MARK}/*.safetensors",
            ("--resume",),
        ),
        "vocabulary": Writer(
            ["train_tokenizer.py", "--source", text, "--vocab_size", 400, "--output", folder / "vocabulary"],
            folder / "vocabulary",
            f".vocabulary{MARK}/*",
        ),
        "chosen": Writer(
            ["train.py", "--minutes", "1", "--output_dir", folder / "run"],
            folder / "run" / "model",
            f"run/.vocabulary{MARK}/*",
            ("--resume",),
        ),
        "onnx": Writer(
            ["convert_gpt2.py", "--export-onnx", "--from-dir", model, "--output", folder / "web", "--no-verify"],
            folder / "web",
            f".web{MARK}/onnx/*",
        ),
        # The push fails, since nothing answers, and the run goes on; a result takes the place of the unfinished one.
        "unfinished": Writer(
            ["train.py", *TRAIN, "--output_dir", folder / "run", "--push_to_hub", "ann/model", "--push_steps", "1"],
            folder / "run" / "model",
            f"run/.unfinished-model{MARK}/*.safetensors",
            ("--resume",),
        ),
        "code": Writer(["push_to_hub.py", "--update-code", old], old / "config.json", f"../old/.*{MARK}"),
    }


OTHERS = ["shards", "figures", "checkpoint", "vocabulary", "chosen", "onnx", "unfinished", "code"]
KINDS = ["export", "run", *OTHERS]


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *(("export", number) for number in SIGNALS),
        *(pytest.param(kind, signal.SIGKILL, marks=pytest.mark.resilience) for kind in ("run", *OTHERS)),
        *(nightly(kind, number) for kind in ("run", *OTHERS) for number in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
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
        assert not list(tmp_path.rglob(f"*{MARK}*"))
        return
    else:
        assert code == 128 + number
        expected = "stopped by signal" if kind in ("run", "checkpoint", "unfinished") else f"ended by {number.name}"
        assert errors.splitlines()[-1].startswith(expected)
        assert not list(tmp_path.rglob(f"*{MARK}*"))

    again = start(*writer.command, *writer.again)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert writer.output.exists()
    assert not list(tmp_path.rglob(f"*{MARK}*"))
    assert all((stranger / "file").is_file() for stranger in strangers)


@pytest.fixture
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which a script notes its file events."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
    return {"PYTHONPATH": str(folder), "TEST_EVENTS": str(folder / "events")}


def renames_before_fsync(events: list[list[Any]], folder: Path) -> list[str]:
    """Name what was renamed into place before it was on the disk, or whose name was not brought there next."""
    faults, flushed, waiting = [], {}, None
    for kind, path, *facts in events:
        if kind == "fsync":
            flushed[path] = facts[0]
            waiting = None if waiting and path == str(Path(waiting).parent) else waiting
            continue
        target, written = facts
        if target.startswith(str(folder)) and MARK not in target.removeprefix(str(folder)):
            faults += [f"{name} of {target}" for name, state in written.items() if flushed.get(name) != state]
            faults += [f"the name of {waiting}"] if waiting else []
            waiting = target
    return faults + ([f"the name of {waiting}"] if waiting else [])


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in ("export", "code") else pytest.mark.resilience)
        for kind in KINDS
        if kind != "checkpoint"  # "run" writes one
    ],
)
def test_what_is_renamed_into_place_is_on_the_disk_before(
    start: Callable, finished_folder: Path, tmp_path: Path, watched: dict[str, str], kind: str
) -> None:
    """Nothing is written after its last fsync, the folder's own follows the rename, and no file comes another way."""
    folder = tmp_path / "work"
    folder.mkdir()
    writer = writers(folder, finished_folder)[kind]
    begin = time.time_ns()
    process = start(*writer.command, variables=watched)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in Path(watched["TEST_EVENTS"]).read_text().splitlines()]
    assert renames_before_fsync(events, tmp_path) == []
    targets = {event[2] for event in events if event[0] == "rename"}
    made = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_mtime_ns > begin]
    otherwise = {path.name for path in made if not targets & {str(path), *map(str, path.parents)}}
    assert otherwise <= {"history.jsonl", ".lock"}, "appended to and written in place"
    assert made


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("code", "config.json"),
        ("code", "modeling_gpt_scratch.py"),
        *(
            pytest.param(kind, name, marks=pytest.mark.resilience)
            for kind, names in {
                "run": ["step-00000003", "config.json", "model"],
                "shards": ["unfinished.json", "train-00001.safetensors", "index.json"],
                "figures": ["bars.png"],
                "export": ["config.json", "stock"],
                "vocabulary": ["tokenizer.json", "vocabulary"],
                "chosen": ["vocabulary"],
                "onnx": ["web"],
                "unfinished": ["unfinished-model"],
            }.items()
            for name in names
        ),
        *(nightly("run", name) for name in ("settings.json", "loss.png", "README.md")),
    ],
)
def test_kill_right_before_a_rename(
    start: Callable, finished_folder: Path, tmp_path: Path, watched: dict[str, str], kind: str, name: str
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    writer = writers(folder, finished_folder)[kind]
    killed = start(*writer.command, variables={**watched, "TEST_KILL_AT": name})
    _, errors = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, errors
    assert list(tmp_path.rglob(f".*{MARK}"))
    again = start(*writer.command, *writer.again)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert writer.output.exists()
    assert not list(tmp_path.rglob(f"*{MARK}*"))


@pytest.mark.resilience
def test_kill_while_a_damaged_history_is_rebuilt(start: Callable, tmp_path: Path, watched: dict[str, str]) -> None:
    run = tmp_path / "run"
    command = ["train.py", *TRAIN, "--output_dir", run]
    assert start(*command).wait(300) == 0
    history = run / "history.jsonl"
    damaged = b"?" + history.read_bytes()
    history.write_bytes(damaged)
    variables = {**watched, "TEST_KILL_AT": history.name}
    killed = start(*command, "--resume", variables=variables)
    assert killed.wait(300) == -signal.SIGKILL
    assert history.read_bytes() == damaged
    again = start(*command, "--resume")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "line 1 cannot be read" in errors
    assert all(json.loads(line) for line in history.read_text().splitlines())
    assert [path.read_bytes() for path in run.glob("history.damaged*")] == [damaged] * 2
    assert not list(run.rglob(f"*{MARK}*"))


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
    """The fresh process that loads the folder does not outlive kill -9, and its files lie in the folder."""
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
