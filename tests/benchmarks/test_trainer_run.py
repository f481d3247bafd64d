"""Proves that the Trainer's script trains on every token of a text, with the Trainer's own defaults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel, TrainingArguments

from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from scripts.benchmarks.peer_benchmark import TINY
from scripts.benchmarks.trainer_run import read_blocks


TEXT = "A lamp by the river.\n\nIt burns, and it burns.\n" * 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, load_vocabulary("gpt2"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_blocks_are_the_tokens_of_the_lines(folder: Path) -> None:
    blocks = read_blocks(folder / "text.txt", str(folder), 64)
    token_ids = [token for line in TEXT.splitlines(keepends=True) for token in load_encoding("gpt2").encode(line)]
    assert [token for block in blocks for token in block["input_ids"].tolist()] == token_ids[: 64 * len(blocks)]
    assert len(blocks) == len(token_ids) // 64


@pytest.mark.commands
def test_a_run_has_the_steps_of_its_tokens_and_the_defaults(folder: Path, project_root: Path) -> None:
    options = {"text": str(folder / "text.txt"), "tokenizer_folder": str(folder), "output": str(folder / "run")}
    options |= {"sizes": TINY, "tokens": 3 * 8 * 64 + 1, "seed": 1}
    command = [sys.executable, "-m", "scripts.benchmarks.trainer_run", json.dumps(options)]
    process = subprocess.run(command, cwd=project_root, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    state = json.loads((folder / "run" / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 3
    assert state["train_batch_size"] == TrainingArguments("unused").per_device_train_batch_size == 8
    model = GPT2LMHeadModel.from_pretrained(folder / "run" / "model")
    assert (model.config.n_layer, model.config.n_embd, model.config.n_positions) == (2, 32, 64)
