"""Proves the score by which models of whole trainings are compared."""

import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import load_encoding
from scripts.benchmarks.scoring import score


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
    """Held against windows and log-probabilities that are written out here.

    GPT-2 numbers the visible characters of ASCII first, and blanks and control characters after all others: its space
    is 220, its line feed 198.
    """
    last = TEXT[int(0.9 * len(TEXT)) :]
    numbers = {character: number for number, character in enumerate(sorted(set(TEXT)))}
    if unit == "bytes":
        ids = [ord(character) - 33 if character > " " else 188 + ord(character) for character in last]
    else:
        ids = [numbers[character] for character in last]
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


def test_the_librarys_gpt2_is_scored_by_the_same_code(tmp_path: Path) -> None:
    """Held against its own loss, in one window."""
    torch.manual_seed(7)
    model = GPT2LMHeadModel(GPT2Config(n_positions=512, n_embd=16, n_layer=1, n_head=2)).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    ids = torch.tensor([load_encoding("gpt2").encode(TEXT[int(0.9 * len(TEXT)) :])])
    scored = score(str(tmp_path / "model"), str(tmp_path / "text.txt"), "gpt2", 512)
    assert scored["loss"] == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-4)
    assert scored["scored tokens"] == ids.shape[1] - 1
    assert scored["parameters"] == model.num_parameters() - 512 * 16
