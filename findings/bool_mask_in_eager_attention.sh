#!/usr/bin/env bash
# transformers 5.24.0, a four-dimensional attention_mask of bool (True where a token is seen, as in torch's
# scaled_dot_product_attention), for GPT-2 and Llama with attn_implementation "sdpa" and "eager".
# One would guess: both mask alike, or one of them refuses the mask.
# Behavior: "sdpa" masks; "eager" adds the mask to the scores as it is, True as +1 and False as 0. So nothing is masked,
# a token sees what comes after it, and there is no error or warning. An additive float mask is right in both.
# Seen on 2026-11-30, torch 2.13.0, a causal mask beside no mask at all, largest difference of the logits: sdpa 0.0,
# eager 6.5 (GPT-2) and 8.0 (Llama), additive mask 0.0. And with eager, another last token changes the logits of the
# first. The script fails when eager masks with it, or sdpa does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cat > mask.py <<'PYTHON'
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
common = {"vocab_size": 100, "initializer_range": 0.3}
models = [
    GPT2LMHeadModel(GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    LlamaForCausalLM(
        LlamaConfig(**common, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ),
]
ids = torch.arange(1, 13)[None]
other = torch.cat([ids[:, :-1], ids[:, -1:] + 50], dim=1)
seen = torch.ones(1, 1, 12, 12).tril().bool()
additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def gap(left, right):
    return round((left - right).abs().max().item(), 2)


right = True
with torch.no_grad():
    for model in models:
        model.eval()
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            plain, masked = model(ids).logits, model(ids, attention_mask=seen).logits
            wrong = gap(plain, masked)
            future = gap(masked[:, 0], model(other, attention_mask=seen).logits[:, 0])
            control = gap(plain, model(ids, attention_mask=additive).logits)
            name = f"{type(model).__name__}, {implementation}"
            print(f"{name}: bool {wrong}, sees the future {future}, additive {control}")
            is_wrong = wrong > 1 and future > 0.1
            right &= control == 0 and (is_wrong if implementation == "eager" else wrong == future == 0)
if not right:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python mask.py
