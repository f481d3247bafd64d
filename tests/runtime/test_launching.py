"""Proves how several processes are started and ended: the committed configs, two nodes, and a process that dies."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from hf_gpt_scratch.runtime import launching
from hf_gpt_scratch.training.checkpoints.manifest import find_corruption
from tests.markers import nightly


TINY = [
    *("--vocabulary", "bytes", "--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16", "--sample_tokens", "5", "--warmup_steps", "2", "--dropout", "0"),
    *("--peak_flops", "1e12"),
]
ENDLESS = [*TINY, "--max_steps", "100000", "--num_train_epochs", "100000", "--eval_steps", "100000"]
CONFIGS = {
    "ddp.yaml": (DistributedType.MULTI_GPU, 2),
    "ddp_cpu.yaml": (DistributedType.MULTI_CPU, 2),
    "fsdp2.yaml": (DistributedType.FSDP, 2),
    "one_device.yaml": (DistributedType.NO, 1),
}


def test_the_time_of_the_launchers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that started the process does not; of torchrun's processes what has started torchrun does."""
    shell = SimpleNamespace(pid=1, cmdline=lambda: ["bash"], parent=lambda: None)
    launcher = SimpleNamespace(pid=2, cmdline=lambda: ["python", "accelerate", "launch", "x.py"], parent=lambda: shell)
    agent = SimpleNamespace(pid=3, cmdline=lambda: ["python", "x.py"], parent=lambda: launcher)
    process = SimpleNamespace(pid=4, parent=lambda: agent)
    alone = SimpleNamespace(pid=5, parent=lambda: shell)
    known = {each.pid: each for each in (shell, launcher, agent, process, alone)}
    monkeypatch.setattr(launching.sys, "argv", ["x.py"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for this, is_of_torchrun, first in ((alone, False, alone), (agent, False, launcher), (process, True, launcher)):
        monkeypatch.setattr(launching.psutil, "Process", lambda pid=None, this=this: known[pid] if pid else this)
        if is_of_torchrun:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        assert launching.first_process() is first


def test_every_config_is_read_by_accelerate(project_root: Path) -> None:
    folder = project_root / "scripts" / "configs"
    assert sorted(path.name for path in folder.iterdir()) == sorted(CONFIGS)
    for name, expected in CONFIGS.items():
        config = load_config_from_file(str(folder / name))
        assert (config.distributed_type, config.num_processes) == expected
    assert load_config_from_file(str(folder / "fsdp2.yaml")).fsdp_config["fsdp_version"] == 2


@pytest.mark.commands
def test_launcher_adds_nothing_to_what_a_run_prints(environment: dict, project_root: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", *ACCELERATE, project_root / "scripts/configs/one_device.yaml"]
    dry_run = [project_root / "scripts" / "train.py", *TINY, "--dry_run", "--output_dir", tmp_path / "run"]
    result = subprocess.run(
        [*launcher, *dry_run], env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    assert result.stderr == ""
    assert result.stdout.startswith("device cpu")
    assert result.stdout.endswith("dry run: nothing was written\n")


def step_losses(folder: Path) -> list[float]:
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [row["loss"] for row in map(json.loads, lines) if row["event"] == "step"]


def free_port() -> int:
    """A port below those from which connections start: a node that waits for it there could connect to itself."""
    while True:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", random.randint(20000, 30000)))
            return listener.getsockname()[1]


@pytest.mark.nightly
def test_one_process_alone_in_a_group_trains_as_one_in_none(
    environment: dict, project_root: Path, short_text: Path, tmp_path: Path
) -> None:
    """DDP is around the model there, and copies gradients: what is done to them in the backward pass would be lost."""
    train = [str(project_root / "scripts" / "train.py"), *TINY, "--train_file", str(short_text), "--max_steps", "6"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]

    def run(name: str, *command: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *command, "--output_dir", str(tmp_path / name)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    ended = [run("none", *train), run("group", *torchrun, *train)]
    assert [one.returncode for one in ended] == [0, 0], ended
    assert step_losses(tmp_path / "group") == pytest.approx(step_losses(tmp_path / "none"), rel=1e-6)
    refused = run("refused", *torchrun, *train, "--optimizer_in_backward", "--max_grad_norm", "0")
    assert "--optimizer_in_backward cannot be used with torchrun" in refused.stderr
    assert not (tmp_path / "refused").exists()


def launched(launch: Callable, short_text: Path, folder: Path, launcher: str, *arguments: object) -> tuple[dict, str]:
    """The settings of a run under `accelerate launch`, none where it was refused; and what it said on stderr."""
    train = [*TINY, "--train_file", short_text, "--max_steps", 3, "--eval_steps", 9, "--output_dir", folder]
    result = launch("train.py", *train, *arguments, launcher=["--quiet", *launcher.split()])
    if result.returncode:
        assert not folder.exists()
        return {}, result.stderr
    return json.loads((folder / "settings.json").read_text(encoding="utf-8")), result.stderr


@pytest.mark.commands
def test_what_the_launcher_was_asked_for_is_heeded(launch: Callable, short_text: Path, tmp_path: Path) -> None:
    """Accelerate hands both numbers on to DeepSpeed alone; the script's own words are not taken for the launcher's."""
    launcher = "--cpu --num_processes 2 --gradient_accumulation_steps 3 --gradient_clipping 0.5"
    settings, _ = launched(launch, short_text, tmp_path / "two", launcher)
    assert (settings["gradient_accumulation_steps"], settings["max_grad_norm"]) == (3, 0.5)
    settings, _ = launched(launch, short_text, tmp_path / "own", "--cpu", "--gradient_accumulation_steps", 2)
    assert settings["gradient_accumulation_steps"] == 2


@pytest.mark.commands
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="has no threads to choose from")
def test_threads_are_chosen_where_the_launcher_was_asked_for_none(
    launch: Callable, short_text: Path, tmp_path: Path
) -> None:
    train = [*TINY, "--train_file", short_text, "--max_steps", 3, "--eval_steps", 9]
    for name, options, is_chosen in (("none", [], True), ("two", ["--num_cpu_threads_per_process", "2"], False)):
        folder = ["--output_dir", tmp_path / name]
        result = launch("train.py", *train, *folder, launcher=["--cpu", *options], threads=None)
        assert ("threads: " in result.stdout) == is_chosen, result


@pytest.mark.parametrize(
    ("launcher", "arguments", "line"),
    [
        pytest.param(
            "--gradient_accumulation_steps 4",
            ["--gradient_accumulation_steps", 2],
            "accelerate launch has gradient_accumulation_steps 4 and --gradient_accumulation_steps is 2: give one",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "--gradient_accumulation_steps 0",
            [],
            "--gradient_accumulation_steps must be at least 1",
            marks=pytest.mark.nightly,
        ),
        (
            "--mixed_precision bf16",
            ["--mixed_precision", "no"],
            "accelerate launch has mixed_precision bf16 and --mixed_precision is no: give one of them",
        ),
        pytest.param(
            "--dynamo_backend eager",
            ["--torch_compile"],
            "accelerate launch has dynamo_backend eager and --torch_compile compiles the model too: give one of them",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_launcher_that_contradicts_a_flag_is_refused(
    launch: Callable, short_text: Path, tmp_path: Path, launcher: str, arguments: list, line: str
) -> None:
    _, errors = launched(launch, short_text, tmp_path / "run", f"--cpu {launcher}", *arguments)
    (said,) = [text for text in errors.splitlines() if "error" in text.lower()]  # the launcher has words of its own
    assert said.startswith("error: ")
    assert line in said


@pytest.mark.commands
def test_two_machines_of_the_launcher_are_one_run(
    environment: dict, project_root: Path, short_text: Path, tmp_path: Path
) -> None:
    """On CPUs, where Accelerate leaves it to us: once there was a run of its own on each."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "--cpu"]
    launcher += ["--num_machines=2", "--num_processes=2", "--main_process_ip=127.0.0.1"]
    launcher += [f"--main_process_port={free_port()}"]
    train = [*TINY, "--train_file", str(short_text), "--max_steps", "3", "--output_dir", str(tmp_path / "run")]
    train = [str(project_root / "scripts" / "train.py"), *train]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    machines = [
        subprocess.Popen([*launcher, f"--machine_rank={rank}", *train], env=environment, **pipes) for rank in range(2)
    ]
    outputs = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "processes 2" in outputs[0][0]
    assert outputs[1][0] == ""


@pytest.mark.resilience
def test_two_nodes_give_the_losses_of_one_process(
    environment: dict, project_root: Path, short_text: Path, tmp_path: Path
) -> None:
    """The README's command line, with both nodes on this machine."""
    script = [str(project_root / "scripts" / "train.py"), *TINY, "--train_file", str(short_text), "--max_steps", "6"]
    rendezvous = ["--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}", "--nproc_per_node=1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
    arguments = ["--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "two")]
    nodes = [
        subprocess.Popen(
            [*torchrun, f"--node_rank={rank}", *script, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "processes 2" in outputs[0][0]
    assert outputs[1][0] == ""  # the main process alone speaks
    arguments = ["--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")]
    subprocess.run(
        [sys.executable, *script, *arguments], env=environment, check=True, capture_output=True, timeout=300
    )
    assert step_losses(tmp_path / "two") == pytest.approx(step_losses(tmp_path / "one"), rel=1e-6)


class Job:
    """A training of two processes that would never end, once it has taken some steps."""

    def __init__(self, launcher: list[str], arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.errors = folder.with_suffix(".err").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *launcher, *arguments, "--output_dir", str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while self.steps() < 15:
            assert self.process.poll() is None, self.messages()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def steps(self) -> int:
        return len(step_losses(self.folder)) if (self.folder / "history.jsonl").is_file() else 0

    def rank(self, number: int) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if child.environ().get("RANK") == str(number))

    def wait(self) -> float:
        """Seconds to the end of all its processes."""
        started = time.monotonic()
        everyone = psutil.Process(self.process.pid).children(recursive=True)
        self.process.wait(timeout=60)
        _, alive = psutil.wait_procs(everyone, timeout=10)
        assert alive == []
        return time.monotonic() - started

    def messages(self) -> list[str]:
        """Return what was written to stderr, without the lines of progress and empty ones."""
        text = Path(self.errors.name).read_text(encoding="utf-8")
        return [line for line in re.split(r"[\r\n]+", text) if line.strip() and not line.startswith("step ")]

    def end(self) -> None:
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait()
        self.errors.close()


ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--quiet", "--config_file"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture
def start(environment: dict, project_root: Path, short_text: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs = []

    def run(launcher: list[str], *arguments: str, **more: str) -> Job:
        launcher = [word if not word.endswith(".yaml") else str(project_root / word) for word in launcher]
        script = [str(project_root / "scripts" / "train.py"), *ENDLESS, "--train_file", str(short_text), *arguments]
        jobs.append(Job(launcher, script, tmp_path / "run", {**environment, **more}))
        return jobs[-1]

    yield run
    for job in jobs:
        job.end()


@pytest.mark.resilience
@pytest.mark.parametrize(
    ("launcher", "victim"),
    [
        nightly([*ACCELERATE, "scripts/configs/ddp_cpu.yaml"], 1),
        ([*ACCELERATE, "scripts/configs/ddp_cpu.yaml"], 0),
        nightly(TORCHRUN, 1),
        nightly([*ACCELERATE, "scripts/configs/fsdp2.yaml"], 1),
    ],
    ids=["accelerate, CPU", "accelerate, CPU, main process", "torchrun", "accelerate, FSDP2"],
)
def test_killed_process_takes_the_job_down_with_one_message(start: Callable, launcher: list[str], victim: int) -> None:
    job = start(launcher, "--save_steps", "5")
    job.rank(victim).send_signal(signal.SIGKILL)
    assert job.wait() < 30
    assert job.process.returncode != 0
    # The launcher's SIGTERM may come before the other process sees that one is gone: then it answers that first.
    messages = [line for line in job.messages() if not line.startswith("SIGTERM: stopping")]
    if "scripts/configs/ddp_cpu.yaml" in launcher:
        how = "was killed by SIGKILL and the others stopped: continue with the same command and --resume"
        assert messages == [f"process {victim} {how}"]
    else:  # torchrun's own report; the process that was left alone adds nothing to it
        assert sum("Root Cause" in line for line in messages) == 1
        assert sum(f"rank      : {victim} " in line for line in messages) == 1
        assert not [line for line in messages if "gloo" in line or line.startswith("[rank")]
    checkpoints = sorted((job.folder / "checkpoints").glob("step-*"))
    assert checkpoints
    assert [find_corruption(path) for path in checkpoints] == [None] * len(checkpoints)


@pytest.mark.resilience
def test_exception_in_one_process_takes_the_job_down_with_its_message(start: Callable, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    failing = """
import os
if os.environ.get("RANK") == "1":
    from hf_gpt_scratch.training import loop
    rate = loop.learning_rate_at
    def failing(step, *rest):
        if step == 20:
            raise OSError(5, "Input/output error", "corpus.bin")
        return rate(step, *rest)
    loop.learning_rate_at = failing
"""
    (tmp_path / "site" / "sitecustomize.py").write_text(failing, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    job = start([*ACCELERATE, "scripts/configs/ddp_cpu.yaml"], PYTHONPATH=paths)
    assert job.wait() < 30
    assert job.process.returncode != 0
    assert job.messages() == ["[process 1] error: corpus.bin: Input/output error"]
    assert job.steps() == 20


@pytest.mark.resilience
def test_process_that_hangs_is_waited_for_no_longer_than_said(start: Callable) -> None:
    """Stopped, not dead: torchrun sees nothing, and the other gives up after --ddp_timeout."""
    job = start([*ACCELERATE, "scripts/configs/ddp_cpu.yaml"], "--ddp_timeout", "3")
    job.rank(1).send_signal(signal.SIGSTOP)
    assert job.wait() < 60
    assert job.process.returncode != 0
    messages = job.messages()
    assert len(messages) == 1
    assert messages[0].startswith("error: another process of the run died or hangs, see its message: ")
