"""Proves that a run can be stopped at any time: by each signal, through each launcher, from a closing terminal."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.runtime.signals import Interrupted, StopSignals
from hf_gpt_scratch.training.checkpoints.manifest import find_corruption
from tests.loopback_hub import LoopbackHub
from tests.markers import nightly


TINY = [
    *("--vocabulary", "bytes", "--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16", "--dropout", "0.1", "--peak_flops", "1e12", "--warmup_steps", "2"),
    *("--per_device_train_batch_size", "2", "--initial_eval_iter", "1", "--sample_tokens", "3"),
]
ENDLESS = ["--max_steps", "100000", "--eval_steps", "100000"]
PYTHON = [sys.executable]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
TWO = ["--num_processes", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
LAUNCHERS = {"accelerate": ACCELERATE, "accelerate, two": [*ACCELERATE, *TWO], "torchrun, two": TORCHRUN}


def rows(folder: Path, event: str) -> list[dict]:
    """The rows of a history that was perhaps not written yet; a last one may be half written."""
    path = folder / "history.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [row for row in map(json.loads, lines) if row["event"] == event]


def outcome(folder: Path) -> tuple:
    """All that must be the same in a resumed run: every row but its speed, and every bit of the last checkpoint."""
    speed = ("tokens_per_second", "mfu", "peak_memory_bytes", "seconds_left", "seconds", "seconds_of_parts")
    found = [row for event in ("step", "evaluation", "sample", "end") for row in rows(folder, event)]
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    tensors = [path.read_bytes() for path in sorted(last.glob("*.safetensors"))]
    return [{key: row[key] for key in row if key not in speed} for row in found], last.name, tensors


def heed_hang_up() -> None:
    """Also where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Started:
    """A run of scripts/train.py, in a session of its own."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.errors = folder.with_suffix(".err")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--output_dir", str(folder)],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True,
                preexec_fn=heed_hang_up,
            )  # fmt: skip
        self.everyone: list[psutil.Process] = []

    def said(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    def wait_until(self, is_so: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not is_so():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def wait_for_steps(self, number: int) -> "Started":
        self.wait_until(lambda: len(rows(self.folder, "step")) >= number)
        self.everyone = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def rank(self, number: int) -> psutil.Process:
        return next(child for child in self.everyone if child.environ().get("RANK") == str(number))

    def wait(self) -> int:
        """Wait until none of its processes is left; the exit code of the first."""
        code = self.process.wait(timeout=120)
        _, alive = psutil.wait_procs(self.everyone, timeout=60)
        assert alive == [], self.said()
        return code

    def checkpoint(self) -> int:
        """The step of the newest checkpoint, which is whole."""
        newest = max((self.folder / "checkpoints").glob("step-*"))
        assert find_corruption(newest) is None
        return int(newest.name.removeprefix("step-"))

    def end(self) -> None:
        for process in self.everyone:
            if process.is_running():
                process.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Texts of some sizes, as tokens of one byte: options that name them."""
    folder, story = tmp_path_factory.mktemp("texts"), bundled_text_path().read_text(encoding="utf-8")
    texts = {"short": story[:2300], "long": story * 100}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: str(folder / name) for name in texts}


@pytest.fixture
def start(environment: dict[str, str], project_root: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    begun = []

    def run(launcher: list[str], *arguments: str, name: str = "run") -> Started:
        command = [*launcher, str(project_root / "scripts" / "train.py"), *TINY, *arguments]
        begun.append(Started(command, tmp_path / name, environment))
        return begun[-1]

    yield run
    for one in begun:
        one.end()


@pytest.mark.resilience
@pytest.mark.parametrize("launcher", [PYTHON, nightly(TORCHRUN)], ids=["one process", "one of two"])
def test_evaluation_is_left_and_done_again_bit_for_bit(start: Callable, texts: dict, launcher: list[str]) -> None:
    """An evaluation of seconds after step 4, which draws its windows; of two processes only the second is told."""
    arguments = ["--train_file", texts["long"], "--validation_file", texts["short"], "--max_steps", "6"]
    arguments += ["--eval_steps", "4", "--eval_iter", "30000", "--initial_eval_iter", "1"]
    arguments += ["--data_order", "torch_dataloader"]
    stopped = start(launcher, *arguments, name="stopped").wait_for_steps(4)
    time.sleep(0.5)
    (stopped.process if launcher is PYTHON else stopped.rank(1)).send_signal(signal.SIGTERM)
    assert stopped.wait() != 0
    assert "SIGTERM: stopping after this step, saving" in stopped.said() or launcher is TORCHRUN
    assert [row["global_step"] for row in rows(stopped.folder, "evaluation")] == [0]  # it was left
    assert stopped.checkpoint() == 4
    assert start(launcher, *arguments, "--resume", name="stopped").wait() == 0
    whole = start(launcher, *arguments, name="whole")
    assert whole.wait() == 0
    assert outcome(stopped.folder) == outcome(whole.folder)


@pytest.mark.resilience
@pytest.mark.nightly
def test_sample_is_left_and_made_again(start: Callable, texts: dict) -> None:
    arguments = ["--train_file", texts["short"], "--max_steps", "3", "--max_position_embeddings", "1024"]
    arguments += ["--sample_tokens", "1000", "--eval_steps", "3"]
    stopped = start(PYTHON, *arguments, name="stopped").wait_for_steps(3)
    stopped.wait_until(lambda: [row["global_step"] for row in rows(stopped.folder, "evaluation")] == [0, 3])
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.wait() == 143, stopped.said()
    assert (rows(stopped.folder, "sample")[1:], stopped.checkpoint()) == ([], 3)
    assert start(PYTHON, *arguments, "--resume", name="stopped").wait() == 0
    whole = start(PYTHON, *arguments, name="whole")
    assert whole.wait() == 0
    assert outcome(stopped.folder) == outcome(whole.folder)


@pytest.mark.nightly
def test_first_and_last_evaluation_are_left_at_once(start: Callable, texts: dict) -> None:
    arguments = ["--train_file", texts["short"], "--validation_file", texts["long"], "--max_steps", "3"]
    arguments += ["--eval_iter", "0"]
    last = start(PYTHON, *arguments).wait_for_steps(3)
    last.wait_until(lambda: (last.folder / "checkpoints" / "step-00000003").is_dir())
    last.process.send_signal(signal.SIGTERM)
    assert last.wait() == 143
    assert last.said().splitlines()[-1] == (
        "stopped by signal after the last step, which is saved: continue with the same command and --resume"
    )
    assert last.checkpoint() == 3
    first = start(PYTHON, *arguments, "--initial_eval_iter", "0", name="first")
    first.wait_until(lambda: rows(first.folder, "run"))
    time.sleep(0.5)
    first.process.send_signal(signal.SIGHUP)
    assert first.wait() == 129
    assert first.said() == (
        "stopped by signal at step 0, where it began: continue with the same command and --resume\n"
    )
    again = start(PYTHON, *arguments, "--resume", name="first").wait_for_steps(1)
    again.process.send_signal(signal.SIGUSR1)
    assert again.wait() == 138


SLOW = [*ENDLESS, "--gradient_accumulation_steps", "2000"]  # a step of seconds, on a fast machine too


@pytest.mark.resilience
def test_second_ctrl_c_ends_it_unsaved(start: Callable, texts: dict) -> None:
    run = start(PYTHON, "--train_file", texts["long"], *SLOW).wait_for_steps(1)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    run.process.send_signal(signal.SIGINT)  # handed on by a launcher: the same one
    time.sleep(0.9)
    assert run.said().splitlines()[-1] == "SIGINT: stopping after this step, saving; Ctrl-C again to stop without"
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    assert run.said().splitlines()[-1].startswith("stopped without saving: continue from the last checkpoint")
    assert not (run.folder / "checkpoints").exists()


@pytest.mark.resilience
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("accelerate", signal.SIGTERM),
        ("accelerate, two", signal.SIGKILL),
        nightly("torchrun, two", signal.SIGTERM),
        nightly("accelerate", signal.SIGKILL),
        nightly("accelerate, two", signal.SIGTERM),
        nightly("torchrun, two", signal.SIGKILL),
    ],
)
def test_run_saves_and_ends_with_its_launcher(start: Callable, texts: dict, name: str, number: signal.Signals) -> None:
    run = start(LAUNCHERS[name], "--train_file", texts["short"], *ENDLESS).wait_for_steps(5)
    run.process.send_signal(number)
    assert run.wait() != 0
    assert run.checkpoint() == len(rows(run.folder, "step")) >= 5
    assert f"stopped by signal: saved {run.folder}/checkpoints/step-" in run.said()


@pytest.mark.resilience
@pytest.mark.parametrize("name", [nightly("accelerate"), "accelerate, two", nightly("torchrun, two")])
def test_signal_to_one_process_ends_the_launcher_with_an_error(start: Callable, texts: dict, name: str) -> None:
    run = start(LAUNCHERS[name], "--train_file", texts["short"], *ENDLESS).wait_for_steps(5)
    (run.everyone[-1] if name == "accelerate" else run.rank(1)).send_signal(signal.SIGTERM)
    assert run.wait() != 0
    assert run.checkpoint() == len(rows(run.folder, "step")) >= 5


@pytest.mark.resilience
@pytest.mark.parametrize("launcher", [nightly(PYTHON), [*ACCELERATE, *TWO]], ids=["one process", "two"])
def test_nohup_keeps_a_run_alive(start: Callable, texts: dict, launcher: list[str]) -> None:
    run = start(["nohup", *launcher], "--train_file", texts["short"], *ENDLESS).wait_for_steps(5)
    for process in [psutil.Process(run.process.pid), *run.everyone]:
        process.send_signal(signal.SIGHUP)  # as the kernel and the launcher would
    run.wait_for_steps(len(rows(run.folder, "step")) + 100)
    run.everyone[-1].send_signal(signal.SIGTERM) if run.everyone else run.process.terminate()
    assert run.wait() != 0
    assert run.checkpoint() > 100


@pytest.mark.nightly
def test_run_outlives_a_shell_that_is_no_launcher_whatever_its_name(
    start: Callable, texts: dict, tmp_path: Path
) -> None:
    script = tmp_path / "accelerate.sh"
    script.write_text('"$@"\ntrue\n', encoding="utf-8")
    run = start(["bash", str(script), *PYTHON], "--train_file", texts["short"], *ENDLESS).wait_for_steps(5)
    (training,) = run.everyone
    run.process.kill()
    run.process.wait()
    seen, deadline = len(rows(run.folder, "step")), time.monotonic() + 120
    while len(rows(run.folder, "step")) < seen + 300:  # well over LOOK_SECONDS
        assert training.is_running(), run.said()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "launcher" not in run.said()
    training.terminate()
    run.wait()
    assert run.checkpoint() >= seen + 300


@pytest.mark.resilience
@pytest.mark.parametrize("name", [nightly("accelerate"), "accelerate, two"])
def test_ctrl_c_in_a_terminal_that_closes_with_the_launcher(
    environment: dict, project_root: Path, texts: dict, tmp_path: Path, name: str
) -> None:
    """As in `ssh -t host accelerate launch ...`: the launcher leads the session, leaves, and the kernel hangs up."""
    command = [*LAUNCHERS[name], str(project_root / "scripts" / "train.py"), *TINY, "--train_file", texts["long"]]
    command += [*SLOW, "--output_dir", str(tmp_path / "run")]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command, environment)
    run, shown, everyone = tmp_path / "run", b"", []
    deadline = time.monotonic() + 120
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):  # the kernel has hung up
                shown += os.read(terminal, 65536)
        if not everyone and rows(run, "step"):
            everyone = psutil.Process(pid).children(recursive=True)
            os.write(terminal, b"\x03")
    os.close(terminal)  # the kernel hangs up, if it has not done so when the leader left
    _, alive = psutil.wait_procs(everyone, timeout=120)
    for process in alive:
        process.kill()
    assert (everyone != [], alive) == (True, [])
    assert b"SIGINT: stopping after this step, saving" in shown
    newest = max((run / "checkpoints").glob("step-*"))
    assert find_corruption(newest) is None
    assert int(newest.name.removeprefix("step-")) == len(rows(run, "step"))


def test_text_being_tokenized_is_left_at_once(start: Callable, tmp_path: Path) -> None:
    """In one call of the tokenizer, of ten seconds and more, no handler of Python's is run."""
    text = tmp_path / "large.txt"
    with text.open("w", encoding="utf-8") as file:
        for _ in range(300):
            file.write(bundled_text_path().read_text(encoding="utf-8") * 25)
    run = start(PYTHON, "--train_file", str(text), "--vocabulary", "gpt2")

    def is_read() -> bool:
        memory = psutil.Process(run.process.pid).memory_info()
        return memory.rss - memory.shared > 5.6e8  # libraries are shared memory, of any size; without the text 4.6e8

    run.wait_until(is_read)
    run.process.send_signal(signal.SIGINT)
    pressed = time.monotonic()
    assert run.wait() == 130
    assert time.monotonic() - pressed < 7
    assert run.said() == "stopped by signal before the first step: start again with the same command\n"
    assert not run.folder.exists()


SWALLOWING = """
import time
from hf_gpt_scratch.runtime.cli import run

def main():
    print("begun", flush=True)
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            pass

run(main)
"""


def test_ctrl_c_that_a_library_swallows_ends_a_script_all_the_same(environment: dict) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWING],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    try:
        ended = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (begun, ended, process.returncode) == ("begun\n", ("", "interrupted\n"), 130)


@pytest.mark.resilience
@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        ("evaluate.py", 6),
        ("generate.py", 0.5),
        ("prepare_data.py", 6),
        ("convert_gpt2.py", 0.5),
        nightly("evaluate.py", 0.5),
        nightly("generate.py", 6),
        nightly("prepare_data.py", 0.5),
    ],
)
def test_ctrl_c_ends_any_script_with_one_line(
    environment: dict, project_root: Path, finished_folder: Path, texts: dict, tmp_path: Path, script: str,
    seconds: float,
) -> None:  # fmt: skip
    """While it loads what it needs, and at work."""
    (tmp_path / "source.txt").write_text(Path(texts["long"]).read_text(encoding="utf-8") * 100, encoding="utf-8")
    arguments = {
        "evaluate.py": ["--model", finished_folder, "--file", tmp_path / "source.txt"],
        "generate.py": ["--model", finished_folder, "--prompt", "The", "--max-new-tokens", "1000000"],
        "prepare_data.py": ["--source", tmp_path / "source.txt", "--output", tmp_path / "tokens"],
        "convert_gpt2.py": ["--export-stock", "--from-dir", finished_folder, "--output", tmp_path / "stock"],
    }
    process = subprocess.Popen(
        [sys.executable, str(project_root / "scripts" / script), *map(str, arguments[script])],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while psutil.Process(process.pid).num_threads() < 2:  # one of them listens
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    pressed = time.monotonic()
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - pressed < 10
    assert errors.splitlines()[-1] == "interrupted", errors
    assert "Traceback" not in errors
    assert process.returncode == 130


@pytest.mark.resilience
def test_first_process_of_a_container_saves(start: Callable, texts: dict) -> None:
    """Where the kernel hands it only signals that it handles."""
    container = ["unshare", "--fork", "--pid", sys.executable]
    if shutil.which("unshare") is None or subprocess.run([*container[:-1], "true"]).returncode != 0:
        pytest.skip("no process namespaces here")
    run = start(container, "--train_file", texts["short"], *ENDLESS).wait_for_steps(5)
    run.everyone[0].send_signal(signal.SIGTERM)
    assert run.wait() == 143
    assert run.checkpoint() == len(rows(run.folder, "step")) >= 5


@pytest.mark.hub
def test_push_to_a_hub_that_hangs_is_left(start: Callable, hub: LoopbackHub, texts: dict, environment: dict) -> None:
    """Beside the run, which waits for it at its end, and of the result."""
    variables = hub.environment(Path(environment["HF_HOME"]), hub.token_of("alice"))
    launcher = ["env", *(f"{name}={value}" for name, value in variables.items()), *PYTHON]
    hang = hub.fault("GET refs", "hang", times=99)
    options = ["--train_file", texts["short"], "--max_steps", "3", "--push_to_hub", "alice/lamp"]
    beside = start(launcher, *options, "--push_steps", "2").wait_for_steps(3)
    beside.wait_until(lambda: hang.hits and (beside.folder / "model").is_dir())
    time.sleep(1)
    beside.process.send_signal(signal.SIGTERM)
    assert beside.wait() == 143
    assert "stopped by signal after the last step, which is saved: continue with" in beside.said()
    seen = len(hang.hits)
    result = start(launcher, *options, "--resume")
    result.wait_until(lambda: len(hang.hits) > seen)
    result.process.send_signal(signal.SIGTERM)
    assert result.wait() == 143
    assert result.said().splitlines()[-1] == (
        "stopped by signal: the model is saved; push it again: hf-gpt-scratch push "
        f"{result.folder / 'model'} alice/lamp --revision main"
    )


def test_signal_is_noted_before_any_other_thread_has_its_turn() -> None:
    """The listener's thread alone would take 5 ms or more, in which a small model makes another step."""
    interval = sys.getswitchinterval()
    try:
        with contextlib.suppress(Interrupted), StopSignals() as signals, signals.noted():
            sys.setswitchinterval(30)
            os.kill(os.getpid(), signal.SIGUSR1)
            received = signals.received
    finally:
        sys.setswitchinterval(interval)
    assert received == signal.SIGUSR1
