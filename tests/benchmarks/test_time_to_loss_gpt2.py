"""Proves what the race with GPT-2's vocabulary judges by, and runs it as typed against the Trainer."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from scripts.benchmarks.measuring import Measurement, Results
from scripts.benchmarks.time_to_loss import refuse_larger_model
from scripts.benchmarks.time_to_loss_gpt2 import OURS, SIZES, limits, our_flags


def samples(*losses_and_walls: tuple[float, float], parameters: int = 10, tokens: int = 99) -> list[Measurement]:
    return [
        Measurement(1.0, wall, 1.0, {"loss": loss, "parameters": parameters, "scored tokens": tokens})
        for loss, wall in losses_and_walls
    ]


def test_each_round_is_judged_by_the_peer_with_the_lowest_loss() -> None:
    results: Results = {
        "one": samples((6.0, 100.0), (6.5, 100.0)),
        "other": samples((6.2, 10.0), (6.4, 80.0)),
        OURS: samples((5.9, 50.0), (6.3, 39.0)),
    }
    loss, time = limits(results)
    assert loss["reached"] == pytest.approx((-0.1, -0.1, -0.1))
    assert time["reached"] == pytest.approx((0.4875, 0.49375, 0.5))
    assert loss["met"]
    assert time["met"]
    results[OURS] = samples((6.1, 50.1), (6.5, 50.1))
    assert not any(one["met"] for one in limits(results))


@pytest.mark.parametrize("changed", [{"parameters": 11}, {"tokens": 98}])
def test_another_task_is_no_result(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="another task"):
        refuse_larger_model({"one": samples((6.0, 1.0)), OURS: samples((5.0, 1.0), **changed)}, OURS)
    refuse_larger_model({"one": samples((6.0, 1.0)), OURS: samples((5.0, 1.0))}, OURS)


def test_ours_is_given_the_vocabulary_and_the_size_alone() -> None:
    flags = our_flags(SIZES["16M"])
    assert flags == {
        "vocabulary": "gpt2",
        "use_cpu": "true",
        "num_hidden_layers": "4",
        "hidden_size": "256",
        "num_attention_heads": "4",
        "max_position_embeddings": "256",
    }


def run_script(root: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, root / "scripts" / "benchmark.py", "time_to_loss_gpt2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_litgpt_needs_a_python(project_root: Path) -> None:
    process = run_script(project_root, "--against", "litgpt")
    assert process.returncode != 0
    assert process.stderr == "error: no peer is left of litgpt: give --peer_python\n"


@pytest.mark.slow
def test_the_race_against_the_trainer_runs_as_typed(project_root: Path, tmp_path: Path) -> None:
    arguments = ("--size", "tiny", "--tokens", 400_000, "--rounds", 1, "--json", tmp_path / "x.json")
    process = run_script(project_root, *arguments)
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert list(report["candidates"]) == ["transformers Trainer", OURS]
    assert report["left_out"] == ["litgpt, without --peer_python", "litgpt, batch of 8, without --peer_python"]
    assert report["text"]["sha256"] == hashlib.sha256(bundled_text_path().read_bytes()).hexdigest()
    details = [samples[0]["details"] for samples in report["candidates"].values()]
    assert details[0]["parameters"] == details[1]["parameters"]
    assert details[0]["scored tokens"] == details[1]["scored tokens"]
