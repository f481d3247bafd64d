"""Proves that a run pushes what it has, and that no trouble with that ends the run or loses its result."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.runtime.signals import Interrupted
from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training.checkpoints.output_folder import UNFINISHED_MODEL
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.reporting.hub_pushes import BackgroundPushes, push_result, warn_early
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.loopback_hub import LoopbackHub
from tests.training.histories import step_losses


TINY = [
    *("--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--dropout", "0"),
    *("--max_position_embeddings", "16", "--sample_tokens", "5", "--warmup_steps", "2", "--max_steps", "12"),
]


@pytest.fixture
def alice(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub, with the variables of Alice for every process that a push starts."""
    for name, value in hub.environment(tmp_path / "home", hub.token_of("alice")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return hub


def settings_for(**changes: object) -> TrainingSettings:
    return TrainingSettings(push_to_hub="alice/lamp", **{"push_timeout": 30, **changes})


def test_a_failed_push_ends_nothing_and_the_last_line_makes_it_good(
    alice: LoopbackHub,
    tiny_settings: Callable[..., TrainingSettings],
    project_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """The unfinished model arrives; the finished one does not, until it is pushed as the last line says."""
    alice.fault("POST commit", "422", times=1, path="commit/main")
    settings = tiny_settings(push_to_hub="alice/lamp", push_steps=5)
    result = train(settings)
    (remedy,) = push_result(settings, result.repository)
    repository = alice.repo("alice/lamp")
    unfinished = repository.resolve("in-training")
    assert unfinished.title == "Unfinished model after step 5"
    assert {"model.safetensors", "loss.png", "README.md"} <= set(unfinished.files)
    assert b"| training | 5 of 6 steps" in unfinished.files["README.md"].content
    assert not (tmp_path / "run" / "unfinished-model").exists()

    warning = f"warning: cannot push to alice/lamp: {alice.url} refused it (Fault 422): correct that and push again"
    assert warning in capsys.readouterr().err.splitlines()
    assert set(repository.head().files) == {".gitattributes"}
    said, typed = remedy.split(": hf-gpt-scratch ")
    assert said == "the model is saved; push it again"
    again = subprocess.run(
        [sys.executable, "-m", "hf_gpt_scratch", *typed.split()],
        cwd=project_root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode == 0, again.stderr
    assert {path.name for path in result.repository.iterdir()} == set(repository.head().files) - {".gitattributes"}
    card = repository.head().files["README.md"].content.decode()
    assert "# lamp" in card
    assert "![losses](loss.png)" in card
    assert str(tmp_path) not in card


@pytest.mark.hub
def test_of_two_processes_one_pushes(alice: LoopbackHub, project_root: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(bundled_text_path().read_text(encoding="utf-8")[:2300], encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    options = [*TINY, "--train_file", text, "--output_dir", tmp_path / "run"]
    options += ["--push_to_hub", "alice/lamp", "--push_steps", "5"]
    command = [*launch, project_root / "scripts" / "train.py", *options]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    titles = [commit.title for commit in alice.repo("alice/lamp").commits]
    assert titles[:2] == ["initial commit", "Unfinished model after step 5"]
    assert titles[-1] == "Upload model"
    assert len(set(titles)) == len(titles)
    assert result.stdout.count("pushed to alice/lamp: commit ") == 1


def test_pushes_change_nothing_of_the_run(
    tiny_settings: Callable[..., TrainingSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # of the processes that push
    results = {}
    for name, pushing in {"plain": {}, "pushing": {"push_to_hub": "alice/lamp", "push_steps": 2}}.items():
        result = train(tiny_settings(output_dir=str(tmp_path / name), dropout=0.1, **pushing))
        rows = map(json.loads, (tmp_path / name / "history.jsonl").read_text(encoding="utf-8").splitlines())
        losses = [row["loss"] for row in rows if row["event"] == "step"]
        results[name] = losses, load_file(result.repository / "model.safetensors")
    (plain, plain_weights), (pushing, pushing_weights) = results.values()
    assert plain == pushing
    assert all(torch.equal(plain_weights[name], pushing_weights[name]) for name in plain_weights)
    assert "warning: cannot push to alice/lamp: offline mode is on" in capsys.readouterr().err


def test_trouble_in_the_background_is_one_line(
    alice: LoopbackHub, finished_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    pushes = BackgroundPushes()
    alice.fault("POST commit", "422")
    pushes.start(finished_folder, settings_for(), 7)
    pushes.report()
    pushes.report()  # nothing more to say
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("warning: cannot push to alice/lamp: ")
    assert line.endswith("; the run continues")


def test_a_hang_in_the_background_ends_with_its_time(
    alice: LoopbackHub, finished_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    pushes = BackgroundPushes()
    alice.fault("GET refs", "hang", times=99)
    pushes.start(finished_folder, settings_for(push_timeout=1), 7)
    assert pushes.is_busy
    pushes.report()
    assert not pushes.is_busy
    assert "had not taken it after 1 seconds" in capsys.readouterr().err


def test_a_folder_that_cannot_be_pushed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    BackgroundPushes().start(tmp_path, settings_for(), 7)
    assert "it lacks README.md" in capsys.readouterr().err
    (remedy,) = push_result(settings_for(hub_private_repo=True, hub_revision="b"), tmp_path)
    assert f"warning: cannot push {tmp_path}: it lacks README.md" in capsys.readouterr().err
    assert remedy.endswith(f"hf-gpt-scratch push {tmp_path} alice/lamp --revision b --private")


def test_what_will_fail_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    warn_early(settings_for())
    warn_early(TrainingSettings())
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    warn_early(settings_for())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the result will not be pushed to alice/lamp: no token for http")


def test_signal_while_an_unfinished_model_is_written_ends_it_at_once(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model takes many seconds; the checkpoint is written before it, and the run goes on from there."""
    whole = tiny_settings(output_dir=str(tmp_path / "whole"))
    train(whole)
    write = loop.write_repository

    def write_for_long(run: Run, folder: Path, kept: Sequence[str] = ()) -> None:
        if folder.name == UNFINISHED_MODEL:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        write(run, folder, kept)

    monkeypatch.setattr(loop, "write_repository", write_for_long)
    settings = tiny_settings(push_to_hub="alice/lamp", push_steps=4)
    begun = time.perf_counter()
    with pytest.raises(Interrupted, match="stopped by signal: saved .*step-00000004 at step 4; continue") as caught:
        train(settings)
    assert time.perf_counter() - begun < 30
    assert caught.value.exit_code == 143
    train(replace(settings, push_steps=0, push_to_hub=None, resume=True))
    assert step_losses(settings.output_dir) == step_losses(whole.output_dir)
