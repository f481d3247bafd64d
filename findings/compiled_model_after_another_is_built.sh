#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.13.0, a GPT-2 under torch.compile, whose input keeps its shape and dtype.
# Behavior: after the first model of another class has been built in the process, here a Llama that is never called, the
# next call of the compiled GPT-2 compiles it anew: its code is guarded by the length of a table in
# transformers.utils.output_capturing, into which each class enters itself when it is built. A second model of GPT-2's
# own class does nothing. So a service that loads another model, or a benchmark that counts parameters with one, stops
# for the minutes of a compilation.
# Seen on 2026-11-30: graphs compiled after each of five calls 1, 1, 1, 2, 2; the fourth is the one after the Llama. The
# script fails when the fourth call compiles nothing, or another one but the first does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cat > compile.py <<'PYTHON'
import torch
import transformers
from torch._dynamo.utils import counters
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

tokens = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
gpt2 = GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, **tokens)
llama = LlamaConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, **tokens
)
compiled = torch.compile(GPT2LMHeadModel(gpt2).eval(), backend="eager")
ids, graphs = torch.arange(8)[None], []


def call():
    with torch.no_grad():
        compiled(ids, use_cache=False)
    graphs.append(counters["stats"]["unique_graphs"])


call()
call()
GPT2LMHeadModel(gpt2)
call()
LlamaForCausalLM(llama)
call()
call()
print(f"torch {torch.__version__}, transformers {transformers.__version__}: graphs after each call {graphs}")
raise SystemExit(graphs != [1, 1, 1, 2, 2])
PYTHON
env/bin/python compile.py
