"""Proves what the benchmark of whole trainings judges by; nanoGPT itself is not part of the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from scripts.benchmarks.measuring import Measurement
from scripts.benchmarks.time_to_loss import (
    NANOGPT,
    OURS,
    OURS_FLAGS,
    OURS_SHORT,
    limits,
    prepare_nanogpt,
    refuse_larger_model,
)


def samples(loss: float, wall: float, parameters: int = 10, tokens: int = 99) -> list[Measurement]:
    return [Measurement(1.0, wall, 1.0, {"loss": loss, "parameters": parameters, "scored tokens": tokens})]


def test_limits_are_judged_round_by_round() -> None:
    results = {NANOGPT: samples(1.9, 100.0), OURS: samples(1.5, 100.0), OURS_SHORT: samples(1.8, 35.0)}
    assert [(one["reached"][1], one["met"]) for one in limits(results)] == [
        (1.5, True), (1.0, True), (pytest.approx(-0.1), True), (0.35, True)
    ]  # fmt: skip
    slow = {NANOGPT: samples(1.9, 100.0), OURS: samples(1.7, 100.1), OURS_SHORT: samples(1.95, 35.1)}
    assert not any(one["met"] for one in limits(slow))


@pytest.mark.parametrize("changed", [{"parameters": 11}, {"tokens": 98}])
def test_another_task_is_no_result(changed: dict[str, int]) -> None:
    results = {NANOGPT: samples(1.9, 1.0), OURS: samples(1.5, 1.0, **changed)}
    with pytest.raises(ValueError, match="another task"):
        refuse_larger_model(results)
    refuse_larger_model({NANOGPT: samples(1.9, 1.0), OURS: samples(1.5, 1.0)})


def test_our_model_is_not_larger_than_that_of_the_recipe() -> None:
    """The recipe prints 0.80M parameters for it: four layers of 128 without biases, 65 characters."""
    config = GPTScratchConfig(
        vocab_size=257,
        **{
            name: int(OURS_FLAGS[name])
            for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
        },
    )
    model = GPTScratchForCausalLM(config)
    ours = model.num_parameters() - model.model.embed_positions.weight.numel()
    assert ours <= 4 * (12 * 128**2 + 2 * 128) + 128 + 65 * 128


def test_another_nanogpt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.py").write_text("print('other')\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not nanoGPT as it is known here"):
        prepare_nanogpt(tmp_path / "source", tmp_path / "text.txt", tmp_path)


def test_the_peer_is_asked_for(project_root: Path) -> None:
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "time_to_loss"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode != 0
    assert process.stderr == "error: time_to_loss needs --nanogpt and --text\n"
