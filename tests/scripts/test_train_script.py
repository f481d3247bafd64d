"""Proves the main job as users type it: one process and two, Ctrl-C and resume, and every mistake in one line."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.commands import train as command
from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training.loop import TrainingResult


TINY = [
    *("--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16", "--sample_tokens", "5", "--warmup_steps", "2", "--dropout", "0"),
]


def step_losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "history.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["loss"] for row in rows if row["event"] == "step"]


def test_launched_training_says_what_it_does_and_where_things_lie(trained: tuple[Path, str]) -> None:
    folder, output = trained
    assert output.startswith("device cpu")
    assert re.search(
        r"validation loss \d+\.\d{3} nats per token, perplexity [\d.]+, bits per byte \d\.\d{3}, after \d+ s", output
    )
    assert f'AutoModelForCausalLM.from_pretrained("{folder}/model", trust_remote_code=True)' in output
    assert len(step_losses(folder)) == 6


@pytest.mark.parametrize(("error", "said"), [(None, "5.500 nats"), (0.0614, "5.500 ± 0.061 nats")])
def test_last_line_has_the_error_of_a_loss_over_a_part_of_the_text(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: float | None,
    said: str,
) -> None:
    result = TrainingResult(tmp_path / "model", 5.0, 5.5, 9.0, 0, True, bits_per_byte=2.1, standard_error=error)
    monkeypatch.setattr(loop, "train", lambda *arguments: result)
    for name in ("stop_with_launcher", "relaunch_if_needed", "quiet_libraries"):
        monkeypatch.setattr(command, name, lambda: None)
    command.main(["--output_dir", str(tmp_path)])
    last_loss = capsys.readouterr().out.splitlines()[0]
    assert last_loss == f"validation loss {said} per token, perplexity 244.7, bits per byte 2.100, after 9 s"


@pytest.mark.commands
@pytest.mark.timeout(900)
def test_default_job_learns_and_then_overfits(launch: Callable, tmp_path: Path) -> None:
    """README's main job, on the bundled story: validation loss falls clearly, training loss goes on below it.

    On one thread, for other tests run beside it: threads that wait for each other would take several times as long.
    """
    result = launch("train.py", "--output_dir", tmp_path / "run", launcher=[], timeout=800)
    assert result.returncode == 0, result.stderr
    rows = map(json.loads, (tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines())
    evaluations = [row for row in rows if row["event"] == "evaluation"]
    validation = [row["validation_loss"] for row in evaluations]
    assert validation[0] > 10.5
    assert min(validation) < 5.0
    assert validation[-1] < validation[0] - 5
    assert evaluations[-1]["train_loss"] < validation[-1] - 1
    assert len([line for line in result.stdout.splitlines() if line.startswith("sample: The lamp")]) == 10
    for name in ("loss.png", "loss.pdf", "model/model.safetensors"):
        assert (tmp_path / "run" / name).is_file()


def test_printed_line_loads_the_model_without_this_package(trained: tuple[Path, str], environment: dict) -> None:
    """As a user would who has only transformers: the line that training printed, and generated text."""
    line = re.search(r"AutoModelForCausalLM\.from_pretrained\(.*\)", trained[1]).group()
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_gpt_scratch":
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
from transformers import AutoModelForCausalLM, AutoTokenizer
model = {line}
tokenizer = AutoTokenizer.from_pretrained("{trained[0]}/model", trust_remote_code=True)
inputs = tokenizer("The lamp", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=trained[0], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("The lamp")


@pytest.mark.commands
def test_two_processes_give_the_losses_of_one(
    trained: tuple[Path, str], launch: Callable, short_text: Path, tmp_path: Path, project_root: Path
) -> None:
    """Half the windows on each process: the same global batch, steps, evaluation and weights."""
    folder = tmp_path / "two"
    arguments = [*TINY, "--train_file", short_text, "--output_dir", folder, "--max_steps", 6, "--eval_steps", 3]
    launcher = ["--cpu", "--num_processes", "2"]
    result = launch("train.py", *arguments, "--per_device_train_batch_size", 4, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert "processes 2" in result.stdout
    assert result.stdout.count("load it:") == 1  # only the main process speaks
    # Sums in another order: float32 rounding, and nothing more.
    assert step_losses(folder) == pytest.approx(step_losses(trained[0]), rel=1e-6)

    def losses(path: Path) -> list[tuple[float, float]]:
        rows = map(json.loads, (path / "history.jsonl").read_text(encoding="utf-8").splitlines())
        return [row["validation_loss"] for row in rows if row["event"] == "evaluation"]

    assert losses(folder) == pytest.approx(losses(trained[0]), rel=1e-6)

    # And again from a checkpoint, each process with its own random state; the number of processes from a file.
    launcher = ["--config_file", str(project_root / "scripts" / "configs" / "ddp_cpu.yaml")]
    resumed = launch("train.py", *arguments, "--per_device_train_batch_size", 4, "--resume", launcher=launcher)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stdout
    assert "processes 2" in resumed.stdout


@pytest.mark.commands
def test_ctrl_c_saves_and_resume_goes_on_bit_for_bit(
    environment: dict, project_root: Path, short_text: Path, tmp_path: Path, launch: Callable
) -> None:
    """A real SIGINT while steps run; the resumed series equals that of a run never stopped."""
    arguments = [*TINY, "--train_file", short_text, "--max_steps", 60, "--eval_steps", 10]
    arguments = [str(a) for a in (*arguments, "--dropout", "0.1", "--output_dir", tmp_path / "stopped")]
    script = [sys.executable, str(project_root / "scripts" / "train.py")]
    process = subprocess.Popen(
        [*script, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "step 10:" in line:
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert re.fullmatch(r"stopped by signal: saved .*/step-\d+ at step \d+; continue with the same command .*", last)
    assert "Traceback" not in errors
    assert 10 <= len(step_losses(tmp_path / "stopped")) < 60

    result = launch("train.py", *arguments, "--resume")
    assert result.returncode == 0, result.stderr
    whole = [*arguments[:-1], str(tmp_path / "whole")]
    assert launch("train.py", *whole).returncode == 0
    assert step_losses(tmp_path / "stopped") == step_losses(tmp_path / "whole")


@pytest.mark.commands
def test_resume_on_a_processor_of_another_kind_is_warned_of(
    launch: Callable, short_text: Path, tmp_path: Path, environment: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch told to use no vector instructions stands for the other machine."""
    arguments = [*TINY, "--train_file", short_text, "--max_steps", 3, "--output_dir", tmp_path / "run"]
    assert launch("train.py", *arguments).returncode == 0
    again = launch("train.py", *arguments, "--resume")
    assert "warning" not in again.stdout
    monkeypatch.setitem(environment, "ATEN_CPU_CAPABILITY", "default")
    other = launch("train.py", *arguments, "--resume")
    assert other.returncode == 0, other.stderr
    assert re.search(
        r"warning: processor was \S+.*, is DEFAULT.*: losses may differ in their last digits", other.stdout
    )


# (arguments, words of the one line); {text} is a good text, {tmp} a folder.
MISTAKES = {
    "missing file": (["--train_file", "{tmp}/none.txt"], "none.txt does not exist"),
    "empty file": (["--train_file", "{tmp}/empty.txt"], "empty.txt is empty"),
    "binary file": (["--train_file", "{tmp}/binary.txt"], "binary.txt is a binary file"),
    "latin-1 file": (["--train_file", "{tmp}/latin.txt"], "latin.txt is not UTF-8 at byte 3"),
    "short text": (["--train_file", "{tmp}/short.txt"], "has 5 tokens and needs 17 for one window"),
    "used folder": (["--output_dir", "{tmp}/used"], "holds another run: continue it with --resume"),
    "long block": (["--block_size", "99"], "--block_size 99 is longer than the context of the model"),
    "two mistakes": (["--dropout", "2", "--max_steps", "0"], "--max_steps must be -1 or at least 1, got 0"),
    "misspelled flag": (["--lerning_rate", "1"], "did you mean --learning_rate"),
    "misspelled key": (["--config", "{tmp}/bad.yaml"], "did you mean learning_rate"),
    "nothing to resume": (["--resume"], "holds no valid checkpoint"),
    "folder cannot be made": (["--output_dir", "/proc/run"], "/proc/run: "),
    "folder below a file": (["--output_dir", "{tmp}/empty.txt/run"], "Not a directory"),
    "none beside a tracker": (["--report_to", "none", "tensorboard"], "--report_to none goes with no tracker"),
    "tracker without a login": (
        ["--report_to", "tensorboard", "wandb"],
        "--report_to tensorboard wandb: a tracker does not start (No API key configured. Use `wandb login`.): wandb: "
        "`wandb login`, or WANDB_MODE=offline; or leave it out",
    ),
    "no network": (["--sample_text", "verdict"], "cannot fetch https://"),
}


@pytest.fixture(scope="module")
def mistakes(
    environment: dict, project_root: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    """Run the script once per mistake, one after another in one interpreter so that its imports are paid once."""
    tmp = tmp_path_factory.mktemp("mistakes")
    (tmp / "empty.txt").write_bytes(b"")
    (tmp / "binary.txt").write_bytes(b"\x00\x01")
    (tmp / "latin.txt").write_bytes(b"caf\xe9")
    (tmp / "short.txt").write_text("The lamp went round and")
    (tmp / "bad.yaml").write_text("lerning_rate: 1")
    # Says what wandb 0.31 says; the package itself is none of the tests'.
    (tmp / "packages" / "wandb-0.31.0.dist-info").mkdir(parents=True)
    (tmp / "packages" / "wandb-0.31.0.dist-info" / "METADATA").write_text("Name: wandb\nVersion: 0.31.0\n")
    (tmp / "packages" / "wandb.py").write_text(
        "def init(**_):\n    raise RuntimeError('No API key configured.\\nUse `wandb login`.')\n"
    )
    (tmp / "used").mkdir()
    (tmp / "used" / "history.jsonl").write_text("")
    commands = {}
    for name, (arguments, _) in MISTAKES.items():
        default_text = [] if "--sample_text" in arguments else ["--train_file", str(short_text)]
        filled = [argument.format(tmp=tmp) for argument in arguments]
        commands[name] = [*TINY, "--max_steps", "3", *default_text, "--output_dir", str(tmp / f"run {name}"), *filled]
    driver = """
import contextlib, io, json, runpy, sys
results = {}
for name, arguments in json.loads(sys.argv[2]).items():
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [sys.argv[0], sys.argv[1], sys.argv[2]]
    script = sys.argv[1]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        saved, sys.argv = sys.argv, [script, *arguments]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        sys.argv = saved
    results[name] = {"out": out.getvalue(), "err": err.getvalue(), "code": code}
json.dump(results, sys.__stdout__)
"""
    result = subprocess.run(
        [sys.executable, "-c", driver, str(project_root / "scripts" / "train.py"), json.dumps(commands)],
        env={**environment, "HF_GPT_SCRATCH_CACHE": str(tmp / "cache"), "PYTHONPATH": str(tmp / "packages")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    left = {path.name for path in tmp.iterdir()}
    return {**json.loads(result.stdout), "left": left}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_gives_one_line_and_leaves_nothing(mistakes: dict[str, dict], name: str) -> None:
    result = mistakes[name]
    lines = result["err"].strip().splitlines()
    assert len(lines) == 1, result["err"]
    assert lines[0].startswith("error: ")
    assert MISTAKES[name][1] in lines[0]
    assert result["code"] == 1
    assert f"run {name}" not in mistakes["left"]


def test_mistake_ends_the_real_process_with_one_line_and_code_1(launch: Callable) -> None:
    result = launch("train.py", "--dropout", "1.5")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "error: --dropout must be at least 0 and below 1, got 1.5\n"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="root may write everywhere; setpriv takes that from it")
def test_folder_without_write_permission_is_refused_in_one_line(
    environment: dict, project_root: Path, short_text: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    as_anyone = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    arguments = [*TINY, "--train_file", str(short_text), "--max_steps", "3", "--output_dir", str(locked / "run")]
    result = subprocess.run(
        [*as_anyone, sys.executable, str(project_root / "scripts" / "train.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr == f"error: {locked / 'run'}: Permission denied\n"
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize(
    ("redirect", "reasons"),
    [
        pytest.param("| head -1", {"stdout": "Broken pipe"}, marks=pytest.mark.nightly),
        ("> /dev/full 2> /dev/full", {"stdout": "No space left on device", "stderr": "No space left on device"}),
    ],
)
def test_output_that_breaks_is_said_in_the_history_once(
    environment: dict, project_root: Path, short_text: Path, tmp_path: Path, redirect: str, reasons: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "--cpu"]
    command += [project_root / "scripts" / "train.py", *TINY, "--train_file", short_text, "--max_steps", 4]
    command += ["--eval_steps", 1, "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "run"]
    line = f"set -o pipefail; {shlex.join(map(str, command))} {redirect}"
    result = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = list(map(json.loads, (tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()))
    lost = [row for row in rows if row["event"] == "output_lost"]
    assert {row["stream"]: row["reason"] for row in lost} == reasons
    assert len(lost) == len(reasons)
    assert [row["event"] for row in rows[-2:]] == ["end", "card"]


def test_help_states_units_and_defaults(launch: Callable) -> None:
    result = launch("train.py", "--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    assert "optimizer steps between evaluations; none: 20, or a fiftieth of a longer run" in text
    for flag in (
        *("--train_file", "--output_dir", "--hidden_size", "--num_hidden_layers", "--num_attention_heads"),
        *("--max_position_embeddings", "--dropout", "--num_train_epochs", "--max_steps", "--seed", "--resume"),
        *("--per_device_train_batch_size", "--gradient_accumulation_steps", "--learning_rate", "--warmup_steps"),
        *("--eval_steps", "--save_steps", "--push_to_hub", "--recipe", "--config"),
    ):
        assert flag in result.stdout
