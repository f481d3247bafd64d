#!/usr/bin/env bash
# torch 2.13.0, load_state_dict(..., assign=True), the way that saves memory, on a model of transformers 5.24.0 whose
# head is tied to its embedding.
# One would guess: the head stays tied, or it is untied and has weights of its own.
# Behavior: neither. The state dict names the matrix twice, each name becomes a Parameter of its own, and both share one
# storage. So the values stay equal and every check of them passes, while parameters() has one more, each of the two
# gets half of the gradient, and AdamW moves the shared values twice in a step. model.tie_weights() after the loading
# mends it.
# Seen on 2026-11-30: largest change of the matrix in the first step of AdamW with a learning rate of 0.01: 0.01 with
# assign=False, 0.02 with assign=True, 0.01 with tie_weights() after it. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cat > assign.py <<'PYTHON'
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()


def tiny():
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).eval()


torch.save(tiny().state_dict(), "model.pt")
ids = torch.arange(12)[None]
results = {}
for name in ("assign=False", "assign=True", "assign=True, tie_weights()"):
    model = tiny()
    model.load_state_dict(torch.load("model.pt", weights_only=True), assign="True" in name)
    if "tie" in name:
        model.tie_weights()
    embedding, head = model.transformer.wte.weight, model.lm_head.weight
    before = embedding.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    change = round((embedding - before).abs().max().item(), 4)
    shared = embedding.data_ptr() == head.data_ptr()
    results[name] = (embedding is head, shared, change)
    count = len(list(model.parameters()))
    print(f"{name}: one Parameter {embedding is head}, one storage {shared}, {count} parameters, step {change}")
tied, torn = (True, True, 0.01), (False, True, 0.02)
if list(results.values()) != [tied, torn, tied]:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python assign.py
