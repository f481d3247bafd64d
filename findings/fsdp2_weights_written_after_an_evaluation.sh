#!/usr/bin/env bash
# torch 2.13.0, fully_shard() (FSDP2) of layers and of the model around them, as is usual, here on a CPU with gloo.
# Behavior: after a forward pass without a backward pass, such as an evaluation, the weights of the outermost unit stay
# whole: named_parameters() gives plain tensors for them and DTensors for the layers. What is then loaded into them, with
# copy_() over named_parameters(), is used by the next forward pass and gone after the backward pass, without a word,
# while what was loaded into the layers stays. So an evaluation before a checkpoint is loaded makes a mixture of two
# models. `reshard()` of every unit before the loading keeps all of it.
# Seen on 2026-11-29: head 0.00 in place of the 7.00 that was loaded, layer 7.00; with reshard() both 7.00. The script
# fails when the head keeps what was loaded, or does not with reshard().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > load.py <<'PYTHON'
import os

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, inputs):
        return self.head(self.layer(inputs))


def loaded_after_an_evaluation(with_reshard):
    """Return the mean weight of layer and head after loading 7 everywhere, a forward and a backward pass."""
    model = Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fully_shard(model.layer)
    fully_shard(model)
    with torch.no_grad():
        model(torch.ones(1, 4))  # the evaluation
    if with_reshard:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
    kinds = {name: type(parameter.data).__name__ for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.full_like(parameter, 7.0))
    model(torch.ones(1, 4)).sum().backward()
    means = {name: parameter.full_tensor().mean().item() for name, parameter in model.named_parameters()}
    return kinds, means


os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "RANK": "0", "WORLD_SIZE": "1"}
torch.distributed.init_process_group("gloo")
torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
results = {}
for with_reshard in (False, True):
    kinds, means = loaded_after_an_evaluation(with_reshard)
    results[with_reshard] = means
    print(f"torch {torch.__version__}, reshard() {with_reshard}: {kinds}, then {means}")
torch.distributed.destroy_process_group()
expected = {False: {"layer.weight": 7.0, "head.weight": 0.0}, True: {"layer.weight": 7.0, "head.weight": 7.0}}
if results != expected:
    raise SystemExit("the behavior has changed")
PYTHON
env/bin/python load.py
