"""PyTorch's distributed checkpoints (DCP) with our model: written by one process, read by two that shard it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM


pytestmark = pytest.mark.ecosystem

BUILD = """
import torch
from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM

torch.manual_seed(1)  # other weights than those that were written
config = GPTScratchConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, dropout=0.0)
model = GPTScratchForCausalLM(config)
ids = torch.arange(40)[None]
"""
SHARDED = f"""
import json
import sys

import torch.distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
{BUILD}
torch.distributed.init_process_group("gloo")
for part in (*model.model.layers, model):
    fully_shard(part, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
report = {{"part": model.lm_head.weight.to_local().numel() / model.lm_head.weight.numel()}}
report["before"] = model(ids, labels=ids).loss.item()
model.reshard()  # what is written into whole weights is lost
state = get_model_state_dict(model)
checkpoint.load(state, checkpoint_id=sys.argv[1])
set_model_state_dict(model, state)
report |= {{"after": model(ids, labels=ids).loss.item(), "names": sorted(state)}}
report["tied"] = model.lm_head.weight is model.model.embed_tokens.weight
if torch.distributed.get_rank() == 0:
    print(json.dumps(report))
torch.distributed.destroy_process_group()
"""


def test_one_process_to_two(environment: dict, project_root: Path, tmp_path: Path) -> None:
    """The loss is the same and the head stays tied; the control is the loss of what was there before."""
    torch.manual_seed(0)
    config = GPTScratchConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, dropout=0.0)
    model = GPTScratchForCausalLM(config)
    ids = torch.arange(40)[None]
    expected = model(ids, labels=ids).loss.item()
    checkpoint.save(get_model_state_dict(model), checkpoint_id=tmp_path / "saved")
    (tmp_path / "sharded.py").write_text(SHARDED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*torchrun, tmp_path / "sharded.py", tmp_path / "saved"],
        env=environment | {"PYTHONPATH": str(project_root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["after"] == pytest.approx(expected, rel=1e-6)
    assert report["before"] != pytest.approx(expected, rel=1e-5)
    assert report["tied"]
    assert report["part"] == 0.5
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(report["names"])  # DCP names the one matrix twice
