"""Proves the whole road of a converted model: a checkpoint that TensorFlow wrote, converted and pushed by our script,
pulled where this package is not installed, computes what the source does.

The source's logits are those of transformers' GPT-2 with TensorFlow's own reading of the variables, to 1e-5 of the
largest: float32, and another order of sums.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.conversion.foreign_models import to_stock
from tests.conversion.tf_writer import write_with_saver
from tests.fresh_interpreter import Calls, run
from tests.loopback_hub import LoopbackHub


SIZES = {"hidden_size": 8, "num_layers": 2, "vocab_size": 50257, "context_length": 12}
HPARAMS = {"n_vocab": 50257, "n_ctx": 12, "n_embd": 8, "n_head": 2, "n_layer": 2}
INPUT_IDS = [[17, 5, 99, 23, 42], [64, 8, 31, 2, 50256]]
REPO = "alice/converted"


def read_variables(tf: ModuleType, checkpoint: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(checkpoint))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def stock_logits(tensors: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        return to_stock(tensors, num_heads=2)(torch.tensor(INPUT_IDS)).logits


@pytest.mark.hub
def test_a_converted_checkpoint_arrives(
    hub: LoopbackHub, tensorflow: ModuleType, project_root: Path, tmp_path: Path
) -> None:
    source = write_with_saver(tensorflow, tmp_path / "openai", SIZES)
    (source / "hparams.json").write_text(json.dumps(HPARAMS), encoding="utf-8")
    script = [sys.executable, str(project_root / "scripts" / "convert_gpt2.py")]
    options = ["--from-dir", str(source), "--output", str(tmp_path / "converted"), "--push-to-hub", REPO]
    environment = os.environ | hub.environment(tmp_path / "home", hub.token_of("alice")) | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*script, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    sha = hub.repo(REPO).head().sha
    assert f'from_pretrained("{REPO}", revision="{sha}", trust_remote_code=True)' in result.stdout

    model = {"path": REPO, "auto_class": "AutoModelForCausalLM", "input_ids": INPUT_IDS, "output": "logits"}
    calls: Calls = {"model": ("load_model", {**model, "revision": sha}), "package": ("import_package", {})}
    outcome = run(tmp_path / "fresh", calls, env=hub.environment(tmp_path / "fresh" / "home"))
    assert outcome.raised("package")[0][0] == "ModuleNotFoundError"
    loaded = outcome.returned("model")
    assert loaded["tied"]
    assert not any(loaded["loading_info"].values())

    logits = outcome.tensor("logits")
    tensors = read_variables(tensorflow, source / "model.ckpt")
    tolerance = 1e-5 * logits.abs().max()
    assert (logits - stock_logits(tensors)).abs().max() <= tolerance
    # The control: one position that is not the source's is seen.
    tensors["model/wpe"] = np.roll(tensors["model/wpe"], 1, axis=0)
    assert (logits - stock_logits(tensors)).abs().max() > 100 * tolerance
    assert hub.unknown == []
