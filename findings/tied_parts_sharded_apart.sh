#!/usr/bin/env bash
# torch 2.13.0, fully_shard (FSDP2) of an embedding and of a head that is tied to it, each by itself, as a plan that
# shards every layer does.
# One would guess: fully_shard refuses it, or keeps the tie.
# Behavior: neither at once. fully_shard returns, and from then on the model has two parameters in place of one:
# counting, optimizers and checkpoints that are made now see an untied head. Only the first forward pass raises a
# ValueError, which names the way out, one group for both. In one group the tie stays.
# Seen on 2026-12-01 with one process (gloo, CPU): apart, 2 parameters, then ValueError; in one group, 1 parameter and
# a loss. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy
cat > shard.py <<'PYTHON'
import os

import torch
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


init_process_group("gloo", init_method=f"file://{os.path.abspath('store')}", rank=0, world_size=1)
mesh, results = init_device_mesh("cpu", (1,)), []
for parts in (lambda model: [model.embedding, model.head], lambda model: [[model.embedding, model.head]]):
    model = Tied()
    for part in parts(model):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    count = len(list(model.parameters()))
    try:
        outcome = f"runs, {model(torch.arange(3)).shape[-1]} logits"
    except ValueError as error:
        outcome = f"ValueError: {str(error)[:60]}"
    results.append((count, outcome.split(":")[0]))
    print(f"parameters after fully_shard: {count}; first forward pass: {outcome}")
if results != [(2, "ValueError"), (1, "runs, 8 logits")]:
    raise SystemExit("the behavior has changed")
PYTHON
env/bin/python shard.py 2> log || { tail -n 20 log; exit 1; }
