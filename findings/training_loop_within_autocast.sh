#!/usr/bin/env bash
# torch 2.13.0, torch.autocast("cpu", torch.bfloat16) around a whole training loop, and around the forward pass in it.
# One would guess: the outer context changes at most the precision of a few more operations.
# Behavior: the model that is evaluated never changes. Autocast keeps the bfloat16 copies of the weights until the
# outermost context ends and does not see that the optimizer has written to them: every forward pass is that of the
# first weights, the gradients are those of the first step, and the float32 weights walk away. No error, no NaN, a
# constant loss.
# Seen on 2026-11-30: losses of three steps 16.0, 0.6413, 0.0253 without the outer context, 16.0, 16.0, 16.0 with it
# (the weight is 1.0, 0.2, -0.6, -1.4 meanwhile), and right again with cache_enabled=False. The script fails when that
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy
cat > loop.py <<'PYTHON'
import contextlib

import torch


def train(outer):
    """Return the losses of three steps that pull the sum of four weights of 1.0 to zero, and the last weight."""
    layer = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    losses = []
    with outer:
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                output = layer(torch.ones(1, 4))
            loss = output.float().square().mean()
            loss.backward()
            optimizer.step()
            losses.append(round(loss.item(), 4))
    return losses, round(layer.weight[0, 0].item(), 2)


inner = train(contextlib.nullcontext())
both = train(torch.autocast("cpu", torch.bfloat16))
uncached = train(torch.autocast("cpu", torch.bfloat16, cache_enabled=False))
print(f"torch {torch.__version__}: losses and weight {inner}, all within autocast {both}, without its cache {uncached}")
right = inner[0][0] == 16.0 and inner[0][2] < 0.1
if not right or uncached != inner or both[0] != [16.0, 16.0, 16.0] or both[1] != -1.4:
    raise SystemExit("the behavior has changed")
PYTHON
env/bin/python loop.py
