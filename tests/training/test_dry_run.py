"""Proves the look ahead: its figures are those of the run, its memory is the measured one, and nothing is written."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from hf_gpt_scratch.training import build
from hf_gpt_scratch.training import dry_run as dry_run_module
from hf_gpt_scratch.training.command_line import RECIPES, parse_settings
from hf_gpt_scratch.training.dry_run import dry_run
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.speed import Speed
from tests.training.histories import rows


def test_least_time_is_not_that_of_one_bad_moment(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Mock(available=1e6))
    measured = iter([1e6, 7e11])
    monkeypatch.setattr(dry_run_module, "measure_peak_flops", lambda *arguments: next(measured))
    assert "FLOPs at a peak of 700 GFLOP/s)" in "\n".join(dry_run(tiny_settings(peak_flops=None)))


@pytest.mark.parametrize("fits", [True, False])
def test_figures_are_those_of_the_run_and_nothing_is_written(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """By the time of a micro-batch where the memory suffices, else by the peak."""
    speed = Speed(micro_batch=10.0, update=1.0, scoring=4.0, sample=3.0, checkpoint=2.0)
    monkeypatch.setattr(build, "measure_speed", lambda *arguments: speed)
    monkeypatch.setattr(Run, "start_seconds", 20.0)
    if not fits:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: Mock(available=1e6))
    settings = tiny_settings(max_steps=-1, num_train_epochs=2, peak_flops=1e6)
    before = sorted(tmp_path.rglob("*"))
    lines = dry_run(settings)
    assert sorted(tmp_path.rglob("*")) == before
    text = "\n".join(lines)
    assert lines[-1] == "dry run: nothing was written"
    train(settings)
    begin, last = rows(settings.output_dir, "run")[0], rows(settings.output_dir, "step")[-1]
    assert f"model {begin['parameters']:,} parameters" in text
    assert f"{begin['train_tokens'] - 1:,} training tokens an epoch" in text
    assert f"{begin['steps_per_epoch']:,} steps an epoch, {begin['steps']:,} steps" in text
    assert f"{last['tokens_seen']:,} tokens\n" in text
    # Each evaluation scores the whole validation text and as much of the other, by forward passes.
    windows = 2 * math.ceil((begin["validation_tokens"] - 1) / 16) * len(rows(settings.output_dir, "evaluation"))
    if fits:
        # Four windows are scored in 4 seconds; a sample each epoch, one checkpoint; the end takes 0.3 of the start.
        besides = 20 + windows + 3 * len(rows(settings.output_dir, "sample")) + 2 + 6
        total = timedelta(seconds=begin["steps"] * 11 + besides)
        line = (
            f"time about {total} by a measured micro-batch, of which {timedelta(seconds=besides)} start, evaluations,"
        )
    else:
        computed = last["tokens_seen"] + 16 * windows / 3
        line = f"time at least {timedelta(seconds=round(computed * begin['flops_per_token'] / 1e6))} "
        assert text.count("not measured, because the memory of this machine does not suffice") == 1
    assert line in text
    with pytest.raises(FileExistsError, match="holds another run"):
        dry_run(settings)


@pytest.mark.parametrize(
    "recipe",  # finetune: test_base_model.py
    [
        pytest.param(name, marks=pytest.mark.nightly if name in ("tutorial", "gpt2-124m") else ())
        for name in RECIPES
        if name != "finetune"
    ],
)
def test_every_recipe_can_be_looked_at(recipe: str, short_text: Path, tmp_path: Path) -> None:
    """With a text of 600 tokens in windows that it fills; the models have their full size."""
    text = ["--train_file", str(short_text), "--validation_file", str(short_text), "--block_size", "64"]
    text += ["--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "run"), "--mixed_precision", "no"]
    lines = dry_run(parse_settings(["--recipe", recipe, *text]))
    parameters = {"tutorial": "162,419,712", "gpt2-124m": "124,439,808", "char-small": "834,432"}[recipe]
    assert f"model {parameters} parameters" in lines[1]
    assert not (tmp_path / "run").exists()


COMMON = ["--max_steps", "3", "--warmup_steps", "1", "--eval_steps", "2", "--sample_tokens", "5"]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--recipe", "char-small", "--per_device_train_batch_size", "64"], marks=pytest.mark.commands),
        pytest.param(["--hidden_size", "96", "--num_hidden_layers", "3"], marks=pytest.mark.slow),
        pytest.param(["--hidden_size", "384", "--per_device_train_batch_size", "8"], marks=pytest.mark.slow),
        pytest.param(["--optim", "muon", "--gradient_accumulation_steps", "2"], marks=pytest.mark.slow),
        pytest.param(["--attn_implementation", "eager", "--num_hidden_layers", "8"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_memory_is_within_15_percent_of_the_measured_peak(
    arguments: list[str], project_root: Path, tmp_path: Path
) -> None:
    """Fresh processes, so that nothing of this one is counted; the kernel's own account of what was resident."""
    command = [sys.executable, str(project_root / "scripts" / "train.py"), *arguments, *COMMON]
    command += ["--output_dir", str(tmp_path / "run")]
    said = subprocess.run([*command, "--dry_run"], capture_output=True, text=True, timeout=300, check=True).stdout
    assert not (tmp_path / "run").exists()
    estimate = float(re.search(r"memory of a process about ([\d.]+) GB", said).group(1)) * 1e9
    subprocess.run(command, capture_output=True, timeout=600, check=True)
    history = (tmp_path / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    measured = [row["peak_memory_bytes"] for row in map(json.loads, history) if row["event"] == "step"][-1]
    assert estimate == pytest.approx(measured, rel=0.15)
