"""Proves the road from texts to a trained model as users type it, on two processes too; each mistake is one line."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


TINY = [
    *("--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--block_size", "16"),
    *("--max_position_embeddings", "16", "--sample_tokens", "0", "--warmup_steps", "2", "--dropout", "0"),
]


def step_losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "history.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["loss"] for row in rows if row["event"] == "step"]


@pytest.fixture(scope="module")
def prepared(launch: Callable, short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("prepared") / "tokens"
    lines = short_text.read_text(encoding="utf-8").split("\n\n")
    source = folder.parent / "story.jsonl"
    source.write_text("\n".join(json.dumps({"story": line}) for line in lines) + "\nnot JSON\n", encoding="utf-8")
    arguments = ["--source", source, "--text_column", "story", "--output", folder, "--shard_tokens", 100]
    result = launch("prepare_data.py", *arguments, "--validation_fraction", 0.3, "--bad_rows", "skip")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder, result.stdout


def test_preparation_says_what_it_made_and_verifies_it(prepared: tuple[Path, str], launch: Callable) -> None:
    folder, output = prepared
    lines = output.splitlines()
    assert lines[0].startswith("train: ")
    assert lines[1].startswith("validation: ")
    assert "left out: 1 bad rows, the first: " in lines[2]
    assert lines[2].endswith("is not JSON")
    assert lines[-1] == f"train on it: hf-gpt-scratch train --train_data {folder}"
    result = launch("prepare_data.py", "--verify", folder)
    assert (result.returncode, result.stdout) == (0, output)


def test_index_is_held_against_itself(prepared: tuple[Path, str], launch: Callable, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared[0], tmp_path / "tokens")
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["num_tokens"] = -5
    (folder / "index.json").write_text(json.dumps(index))
    result = launch("prepare_data.py", "--verify", folder)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"error: {folder}/index.json is corrupt (num_tokens of train is -5, and its shards have" in result.stderr


def test_file_named_again_is_read_once_and_one_to_validate_on_is_named(launch: Callable, tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text('{"text": "The lamp went round."}')
    (tmp_path / "link.jsonl").symlink_to("docs.jsonl")
    docs, link = tmp_path / "docs.jsonl", tmp_path / "link.jsonl"
    arguments = ["--source", docs, docs, link, "--validation_source", link, "--output", tmp_path / "tokens"]
    result = launch("prepare_data.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("train: 6 tokens, 1 documents, 1 shards")
    again, shared = result.stderr.splitlines()
    assert again == f"warning: {docs} is named 3 times: taken once"
    assert shared.startswith(f"warning: {link}: trained on too")


@pytest.mark.slow
def test_training_on_it_is_the_same_on_one_process_and_two(
    prepared: tuple[Path, str], launch: Callable, tmp_path: Path
) -> None:
    """Documents kept apart, in shards of 100 tokens: the same windows, order and losses to float32 rounding."""
    arguments = [*TINY, "--train_data", prepared[0], "--separate_documents", "--max_steps", 6, "--eval_steps", 3]
    losses = []
    for processes, batch in ((1, 4), (2, 2)):
        folder = tmp_path / str(processes)
        launcher = ["--cpu", "--num_processes", str(processes)]
        result = launch(
            "train.py", *arguments, "--output_dir", folder, "--per_device_train_batch_size", batch, launcher=launcher
        )
        assert result.returncode == 0, result.stderr
        losses.append(step_losses(folder))
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_killed_process_leaves_what_the_same_command_finishes(
    environment: dict, project_root: Path, launch: Callable, tmp_path: Path
) -> None:
    """A real SIGKILL once some shards are there; the result is that of an unbroken run, to the byte."""
    source = tmp_path / "text.jsonl"
    rows = (json.dumps({"text": f"{number} lamps went round. " * 300}) for number in range(900))
    source.write_text("\n".join(rows))
    arguments = ["--source", source, "--shard_tokens", 40_000, "--output"]
    script = [sys.executable, project_root / "scripts" / "prepare_data.py"]
    process = subprocess.Popen([*map(str, [*script, *arguments, tmp_path / "killed"])], env=environment)
    while not (tmp_path / "killed" / "train-00003.safetensors").exists():
        assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "index.json").exists()
    refused = launch("prepare_data.py", "--verify", tmp_path / "killed")
    assert "is not finished: give hf-gpt-scratch prepare the same options again" in refused.stderr

    resumed = launch("prepare_data.py", *arguments, tmp_path / "killed", "--num_workers", 1)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after" in resumed.stderr
    assert launch("prepare_data.py", *arguments, tmp_path / "whole").returncode == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


MISTAKES = {
    "nothing to read": (["--output", "{tmp}/out"], "give either --source with files or folders, or --dataset"),
    "no output": (["--source", "{tmp}/a.jsonl"], "name the folder to make with --output"),
    "two ways to validate": (
        ["--source", "{tmp}/a.jsonl", "--output", "{tmp}/out", "--validation_fraction", "0.1"]
        + ["--validation_source", "{tmp}/a.jsonl"],
        "--validation_fraction or --validation_source, not both",
    ),
    "impossible fraction": (
        ["--source", "x", "--output", "x", "--validation_fraction", "1"],
        "argument --validation_fraction: must be at least 0 and below 1, got 1",
    ),
    "no workers": (["--verify", "x", "--num_workers", "0"], "argument --num_workers: must be at least 1"),
    "missing file": (["--source", "{tmp}/none.txt", "--output", "{tmp}/out"], "none.txt does not exist"),
    "not JSON": (["--source", "{tmp}/a.jsonl", "--output", "{tmp}/out"], "a.jsonl line 2 is not JSON; repair it"),
    "no such column": (
        ["--source", "{tmp}/a.jsonl", "--output", "{tmp}/out", "--text_column", "body"],
        "line 1 has no text 'body' (it has: text); --text_column names another",
    ),
    "used folder": (["--source", "{tmp}/a.jsonl", "--output", "{tmp}"], "is not empty, it holds a.jsonl"),
    "no room for it": (["--source", "{tmp}/a.jsonl", "--output", "/proc/out"], "/proc/out: "),
    "nothing to verify": (["--verify", "{tmp}"], "holds no prepared data: make it with hf-gpt-scratch prepare"),
    "damaged": (["--verify", "{tmp}/damaged"], "1 of the shards are corrupt, the first: "),
    "no such dataset": (["--dataset", "nobody/nothing", "--output", "{tmp}/out"], "nobody/nothing"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_gives_one_line(launch: Callable, prepared: tuple[Path, str], tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnot JSON\n')
    if name == "damaged":
        (tmp_path / "damaged").symlink_to(damaged_copy(prepared[0], tmp_path / "copy"))
    arguments, words = MISTAKES[name]
    result = launch("prepare_data.py", *(argument.format(tmp=tmp_path) for argument in arguments))
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 1
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def damaged_copy(folder: Path, copy: Path) -> Path:
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    path = copy / "train-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    return copy


def test_no_step_is_trained_on_a_damaged_shard(prepared: tuple[Path, str], launch: Callable, tmp_path: Path) -> None:
    """A bit flipped in the tokens: the run stops at the window that reads it, in one line."""
    copy = damaged_copy(prepared[0], tmp_path / "copy")
    path = copy / "train-00001.safetensors"
    content = bytearray((prepared[0] / path.name).read_bytes())
    content[4096 + 150] ^= 4
    path.write_bytes(content)
    result = launch("train.py", *TINY, "--train_data", copy, "--output_dir", tmp_path / "run", "--max_steps", 60)
    assert result.returncode == 1
    assert "train-00001.safetensors is corrupt at tokens 0 to 2047 (wrong checksum)" in result.stderr
    assert "Traceback" not in result.stderr


def test_full_disk_is_one_line(environment: dict, project_root: Path, tmp_path: Path) -> None:
    """A file system of one megabyte; skipped where a user may not mount one."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    (tmp_path / "a.txt").write_text("The lamp went round. " * 200_000)
    command = f"mount -t tmpfs -o size=1m none {tmp_path}/disk && exec {sys.executable}"
    command += f" {project_root}/scripts/prepare_data.py"
    command += f" --source {tmp_path}/a.txt --output {tmp_path}/disk/out --shard_tokens 100000"
    (tmp_path / "disk").mkdir()
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert str(tmp_path / "disk" / "out") in lines[0]
