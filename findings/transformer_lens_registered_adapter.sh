#!/usr/bin/env bash
# TransformerLens 4.3.0, ArchitectureAdapterFactory.register_adapter(name, adapter), "allows users to add their own
# architecture adapters", then TransformerBridge.boot_transformers(...) of a model of that architecture.
# Behavior: ValueError "Could not determine supported architecture". boot_transformers looks for the name in the table
# SUPPORTED_ARCHITECTURES of the factory's module; the factory was given a copy of that table when it was made, and only
# the copy is registered in. The entry-point group transformer_lens.architectures fills only the copy, too. With the name
# written into the table as well, the model loads.
# Seen on 2026-11-30 with transformers 5.24.0, torch 2.13.0: that error, then logits equal to the model's. The script
# fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > show.py <<'PYTHON'
import torch
from tokenizers import Tokenizer, models
from transformer_lens.factories import architecture_adapter_factory as factory
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


class ToyConfig(GPT2Config):
    model_type = "toy"


class ToyModel(GPT2LMHeadModel):
    config_class = ToyConfig


def boot():  # the tokenizer is read from the folder
    return TransformerBridge.boot_transformers("toy", hf_model=model, device="cpu")


plain = Tokenizer(models.WordLevel({"[END]": 0, "a": 1}, unk_token="[END]"))
special = dict(unk_token="[END]", bos_token="[END]", eos_token="[END]", pad_token="[END]")
PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained("toy")
sizes = dict(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
model = ToyModel(ToyConfig(**sizes, architectures=["ToyModel"])).eval()
adapter = factory.SUPPORTED_ARCHITECTURES["GPT2LMHeadModel"]
factory.ArchitectureAdapterFactory.register_adapter("ToyModel", adapter)
try:
    boot()
    said = "no error"
except ValueError as error:
    said = str(error).partition(" from config")[0]
print("registered:", said)
factory.SUPPORTED_ARCHITECTURES["ToyModel"] = adapter
ids = torch.tensor([[1, 2, 3, 4]])
with torch.no_grad():
    expected = model(ids).logits
    difference = (boot()(ids) - expected).abs().max().item()
print("written into SUPPORTED_ARCHITECTURES too: difference of logits below 1e-5", difference < 1e-5)
assert said == "Could not determine supported architecture"
assert difference < 1e-5
PYTHON
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check transformer-lens==4.3.0 torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 WANDB_MODE=disabled env/bin/python show.py
