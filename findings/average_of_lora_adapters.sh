#!/usr/bin/env bash
# peft 0.21.2, add_weighted_adapter(..., combination_type="linear") of LoRA adapters.
# One would guess: the changes of the weights are added with the given factors, so that the average of an adapter with
# itself is that adapter.
# Behavior: the two factors of each adapter are averaged, with the roots of the weights, and only then multiplied: the
# products of one adapter's A with another's B come in. Half of an adapter and half of itself is twice the adapter, and
# the average of two unlike ones is off by more than its own length. "dare_linear" and "magnitude_prune" do the same.
# "cat" (of a higher rank) is exact. Nothing is said.
# Seen on 2026-11-30, transformers 5.24.0, torch 2.13.0: a + a, halves: "linear" 2.0 times a, "cat" 1.0; error of the
# average of two over its length: "linear" about 1.0, "cat" 0.0. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 transformers==5.24.0 \
    peft==0.21.2 numpy
cat > average.py <<'PYTHON'
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
lora = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
model = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), lora, adapter_name="one")
model.add_adapter("two", lora)
layer = model.base_model.model.model.layers[0].self_attn.q_proj
a, b = layer.get_delta_weight("one"), layer.get_delta_weight("two")
results = {}
for kind in ("linear", "cat"):
    model.add_weighted_adapter(["one", "one"], [0.5, 0.5], f"{kind}_same", combination_type=kind)
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], f"{kind}_both", combination_type=kind)
    same, both = layer.get_delta_weight(f"{kind}_same"), layer.get_delta_weight(f"{kind}_both")
    average = (a + b) / 2
    results[kind] = (
        round((same * a).sum().item() / a.square().sum().item(), 2),
        round((both - average).norm().item() / average.norm().item(), 2),
    )
    print(
        f"peft {peft.__version__}, {kind}: halves of a and a give {results[kind][0]} times a, "
        f"halves of a and b are off by {results[kind][1]}"
    )
if results["linear"][0] != 2.0 or results["linear"][1] < 0.5 or results["cat"] != (1.0, 0.0):
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python -W ignore average.py
