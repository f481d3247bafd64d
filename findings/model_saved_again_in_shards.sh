#!/usr/bin/env bash
# transformers 5.24.0, save_pretrained() into a folder that has an older save of the same model, this time with a
# max_shard_size that the model exceeds (as when a run is saved again with smaller files, or the model has grown).
# One would guess: the folder then holds the new model. save_pretrained() does remove older shards.
# Behavior: it does not remove an older model.safetensors, and from_pretrained() prefers that to the index of the
# shards: what is loaded is the old model, without a word. An empty folder gives the new one.
# Seen on 2026-11-30, torch 2.13.0, weights of ones saved, then weights of twos in shards: loaded from the same folder
# 1.0, from an empty one 2.0. The script fails when the first is not the old model any more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cat > save.py <<'PYTHON'
from pathlib import Path

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=16))
embedding = model.transformer.wte.weight


def loaded(folder):
    return GPT2LMHeadModel.from_pretrained(folder).transformer.wte.weight.mean().item()


torch.nn.init.constant_(embedding, 1.0)
model.save_pretrained("same")
torch.nn.init.constant_(embedding, 2.0)
model.save_pretrained("same", max_shard_size="20KB")
model.save_pretrained("empty", max_shard_size="20KB")
results = {folder: loaded(folder) for folder in ("same", "empty")}
count = len(list(Path("same").glob("model-*.safetensors")))
print(f"transformers {transformers.__version__}, {count} shards of twos in both folders: loaded {results}")
if results != {"same": 1.0, "empty": 2.0}:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python save.py
