"""Proves what the benchmark of whole trainings judges by; nanoGPT itself is not part of the tests."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from scripts.benchmarks.measuring import Measurement
from scripts.benchmarks.scoring import score
from scripts.benchmarks.time_to_loss import (
    NANOGPT,
    OURS,
    OURS_FLAGS,
    OURS_SHORT,
    limits,
    prepare_nanogpt,
    refuse_larger_model,
)


TEXT = "".join(chr(97 + number * number % 23) + " \n"[number % 2] for number in range(400))
CONTEXT = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    config = GPTScratchConfig(
        vocab_size=256, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=CONTEXT
    )
    GPTScratchForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("unit", ["bytes", "characters"])
def test_the_score_is_that_of_the_last_tenth(folder: Path, unit: str) -> None:
    """Held against windows and log-probabilities that are written out here."""
    last = TEXT[int(0.9 * len(TEXT)) :]
    numbers = {character: number for number, character in enumerate(sorted(set(TEXT)))}
    ids = [ord(character) if unit == "bytes" else numbers[character] for character in last]
    model = GPTScratchForCausalLM.from_pretrained(folder / "model").eval()
    nats = []
    while len(nats) < len(ids) - 1:
        start = min(len(nats), len(ids) - 1 - CONTEXT)  # the last window reaches back for context
        window, following = ids[start : start + CONTEXT], ids[start + 1 : start + CONTEXT + 1]
        with torch.no_grad():
            log_probabilities = model(torch.tensor([window])).logits[0].double().log_softmax(-1)
        scores = [-log_probabilities[place, token].item() for place, token in enumerate(following)]
        nats += scores[len(nats) - start :]
    scored = score(str(folder / "model"), str(folder / "text.txt"), unit, CONTEXT)
    assert scored["scored tokens"] == len(nats) == len(last) - 1
    assert scored["loss"] == pytest.approx(math.fsum(nats) / len(nats), abs=1e-4)
    assert scored["parameters"] == model.num_parameters() - CONTEXT * 16


def test_the_units_are_told_apart(folder: Path) -> None:
    losses = {
        score(str(folder / "model"), str(folder / "text.txt"), unit, 8)["loss"] for unit in ("bytes", "characters")
    }
    assert len(losses) == 2


def samples(loss: float, wall: float, parameters: int = 10, tokens: int = 99) -> list[Measurement]:
    return [Measurement(1.0, wall, 1.0, {"loss": loss, "parameters": parameters, "scored tokens": tokens})]


def test_limits_are_judged_round_by_round() -> None:
    results = {NANOGPT: samples(1.9, 100.0), OURS: samples(1.5, 101.0), OURS_SHORT: samples(1.8, 36.0)}
    assert [(one["reached"][1], one["met"]) for one in limits(results)] == [
        (1.5, True), (1.01, True), (pytest.approx(-0.1), True), (0.36, True)
    ]  # fmt: skip
    slow = {NANOGPT: samples(1.9, 100.0), OURS: samples(1.7, 120.0), OURS_SHORT: samples(1.95, 50.0)}
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
