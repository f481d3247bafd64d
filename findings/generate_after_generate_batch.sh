#!/usr/bin/env bash
# Surprise: after model.generate_batch() (continuous batching), generate() of the same model gives other tokens, without
# an error or a warning. With transformers 5.6.0 (5.5.4 too; not 5.10.4), torch 2.13.0, the library's own GPT-2 on a
# CPU. generate_batch() itself is right: it leaves the attention set to "paged|sdpa", which outside of it gets no
# causal mask. Seen on 2026-11-28: before and batch [323, 109, 353, 230, 35, 230], after [372, 109, 353, 230, 353, 353].
# Way out: model.set_attn_implementation("sdpa") afterwards. Exits non-zero if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.6.0 accelerate==1.15.0
cat > "$folder/show.py" <<'PYTHON'
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
sizes = {"vocab_size": 500, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64}
model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.4, bos_token_id=0, eos_token_id=0)).eval()
prompt = torch.randint(1, 500, (1, 12), generator=torch.Generator().manual_seed(1))
options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def plain():
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **options)
    return ids[0, 12:].tolist()


before = plain()
settings = GenerationConfig(eos_token_id=-1, **options)
paged = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
results = model.generate_batch([prompt[0].tolist()], generation_config=settings, continuous_batching_config=paged)
batch = [result.generated_tokens for result in results.values()]
left_over, after = model.config._attn_implementation, plain()
model.set_attn_implementation("sdpa")
print("before", before, "batch", batch, "after", after, left_over, "set back", plain())
assert batch == [before]
assert left_over == "paged|sdpa"
assert after != before
assert plain() == before
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
