"""Proves the whole road of a trained model: trained and pushed by one command, pulled where this package is not
installed, it computes bit for bit what the saved one does.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch.hub.loading import load_model_and_tokenizer
from tests.fresh_interpreter import Calls, run
from tests.loopback_hub import LoopbackHub


TINY = [
    *("--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16", "--sample_tokens", "5", "--warmup_steps", "2", "--max_steps", "6"),
]
INPUT_IDS = [[17, 5, 99, 23, 42], [64, 8, 31, 2, 50256]]
REPO = "alice/trained"


@pytest.mark.hub
def test_a_trained_model_arrives(
    hub: LoopbackHub, environment: dict[str, str], project_root: Path, short_text: Path, tmp_path: Path
) -> None:
    options = [*TINY, "--train_file", short_text, "--output_dir", tmp_path / "run", "--push_to_hub", REPO]
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    command += [project_root / "scripts" / "train.py", *options]
    settings = environment | hub.environment(tmp_path / "home", hub.token_of("alice"))
    result = subprocess.run(list(map(str, command)), env=settings, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    sha = hub.repo(REPO).head().sha
    assert f'from_pretrained("{REPO}", revision="{sha}", trust_remote_code=True)' in result.stdout

    model = {"path": REPO, "auto_class": "AutoModelForCausalLM", "input_ids": INPUT_IDS, "output": "logits"}
    calls: Calls = {"model": ("load_model", {**model, "revision": sha}), "package": ("import_package", {})}
    outcome = run(tmp_path / "fresh", calls, env=hub.environment(tmp_path / "fresh" / "home"))
    assert outcome.raised("package")[0][0] == "ModuleNotFoundError"
    assert outcome.returned("model")["tied"]
    saved, _ = load_model_and_tokenizer(str(tmp_path / "run" / "model"))
    with torch.no_grad():
        assert torch.equal(outcome.tensor("logits"), saved(torch.tensor(INPUT_IDS)).logits)
    assert hub.unknown == []
