"""Sums of gloo, PyTorch's way to add over processes on CPUs, in half precision."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.ecosystem

ADD = """
import json

import torch
from torch import distributed

distributed.init_process_group("gloo")
sums = {}
for dtype, largest in ((torch.bfloat16, 256.0), (torch.float16, 2048.0), (torch.float32, 256.0)):
    tensor = torch.full((4,), largest if distributed.get_rank() == 0 else 1.0, dtype=dtype)
    distributed.all_reduce(tensor)
    everywhere = [None] * 4
    distributed.all_gather_object(everywhere, tensor.tolist())
    assert everywhere == [everywhere[0]] * 4
    sums[str(dtype)] = everywhere[0]
if distributed.get_rank() == 0:
    print(json.dumps(sums))
distributed.destroy_process_group()
"""


def test_half_precision_is_rounded_at_every_hop(environment: dict, tmp_path: Path) -> None:
    """256 + 1 + 1 + 1 is 259, in bf16 260, and at two of four places 256; every process has the same."""
    (tmp_path / "add.py").write_text(ADD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
    result = subprocess.run(
        [*command, tmp_path / "add.py"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "torch.bfloat16": [260, 260, 256, 256],
        "torch.float16": [2052, 2052, 2048, 2048],
        "torch.float32": [259] * 4,
    }
