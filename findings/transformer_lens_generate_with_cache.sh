#!/usr/bin/env bash
# TransformerLens 4.3.0, TransformerBridge.generate(..., do_sample=False) of transformers' own GPT-2, on a CPU.
# Behavior: with transformers 5.24.0, which pip installs beside it, the greedy ids are wrong after the first two new
# tokens, without an error or a warning. The default use_past_kv_cache=True hands the cache over as past_key_values;
# 5.24's GPT-2 calls that argument `cache`, takes the other for one of the many that it passes on, and so sees only the
# newest token. use_past_kv_cache=False, or transformers 5.23.0, gives the ids of transformers' own generate().
# Seen on 2026-11-30 with torch 2.13.0: equal True and True with 5.23.0, False and True with 5.24.0. The script fails when
# that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > show.py <<'PYTHON'
import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, __version__

plain = Tokenizer(models.WordLevel({"[END]": 0, "a": 1}, unk_token="[END]"))
special = dict(unk_token="[END]", bos_token="[END]", eos_token="[END]", pad_token="[END]")
PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained("toy")
torch.manual_seed(0)
sizes = dict(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(GPT2Config(**sizes, architectures=["GPT2LMHeadModel"], initializer_range=0.3)).eval()
ids = torch.tensor([[1, 2, 3, 4]])
expected = model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None)
bridge = TransformerBridge.boot_transformers("toy", hf_model=model, device="cpu")
options = dict(max_new_tokens=10, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False)
found = [bridge.generate(ids, use_past_kv_cache=is_cached, **options) for is_cached in (True, False)]
equal = [torch.equal(one, expected) for one in found]
print(f"transformers {__version__}: equal with the cache {equal[0]}, without {equal[1]}")
print("expected", expected[0, 4:].tolist(), "with the cache", found[0][0, 4:].tolist())
assert equal == [__version__ != "5.24.0", True]
PYTHON
python3 -m venv env
for version in 5.23.0 5.24.0; do
    env/bin/pip install --quiet --disable-pip-version-check transformer-lens==4.3.0 torch==2.13.0 "transformers==$version"
    HF_HUB_OFFLINE=1 WANDB_MODE=disabled env/bin/python show.py
done
