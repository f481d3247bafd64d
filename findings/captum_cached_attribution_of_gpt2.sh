#!/usr/bin/env bash
# captum 0.9.0, LLMAttribution(FeatureAblation(model), tokenizer).attribute(...) of transformers' own GPT-2, with its
# default use_cached_outputs=True and a target of two tokens, in eager PyTorch on a CPU.
# Behavior: with transformers 5.24.0 the attributions of all target tokens but the first are wrong, without an error or a
# warning. captum calls prepare_inputs_for_generation() itself, for each token of the target, with the whole text and the
# cache of all of it but the last token. In transformers 4 that method cut the text to the new token; since 5 the caller
# says how many are new (next_sequence_length), so the text is read a second time, behind itself. With transformers
# 4.57.6, or use_cached_outputs=False, the attributions are those of an ablation by hand.
# Seen on 2026-11-30 with torch 2.13.0: largest difference to the ablation by hand, first and second token of the target:
# with 4.57.6 0.000 and 0.000; with 5.24.0 0.000 and over 0.1, and 0.000 twice without the cached outputs. The script
# fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > show.py <<'PYTHON'
import torch
from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, __version__

words = ["[UNK]", "the", "red", "boat", "sails", "far", "away"]
plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
torch.manual_seed(0)
sizes = dict(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).eval()
prompt, target = "the red boat", "sails far"
ids = tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]


@torch.no_grad()
def log_probabilities(text):
    return model(text).logits[0, 2:4].log_softmax(-1)[torch.arange(2), text[0, 3:]]


without = [ids.index_fill(1, torch.tensor([place]), 0) for place in range(3)]
by_hand = torch.stack([log_probabilities(ids) - log_probabilities(text) for text in without], dim=1)
attribution = LLMAttribution(FeatureAblation(model), tokenizer)
differences = {}
for options in ({}, {"use_cached_outputs": False}):
    found = attribution.attribute(TextTokenInput(prompt, tokenizer, baselines=0), target=target, **options).token_attr
    differences[bool(options)] = (found - by_hand).abs().amax(dim=1).tolist()
    print(f"transformers {__version__}, options {options}:", *(f"{one:.3f}" for one in differences[bool(options)]))
is_wrong = __version__ == "5.24.0"
assert max(differences[True]) < 1e-5
assert differences[False][0] < 1e-5
assert differences[False][1] > 0.1 if is_wrong else differences[False][1] < 1e-5
PYTHON
python3 -m venv env
for version in 4.57.6 5.24.0; do
    env/bin/pip install --quiet --disable-pip-version-check captum==0.9.0 torch==2.13.0 "transformers==$version"
    HF_HUB_OFFLINE=1 env/bin/python show.py
done
