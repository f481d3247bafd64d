#!/usr/bin/env bash
# transformers 5.24.0, a tokenizer that is called once with truncation and padding, then saved with save_pretrained(),
# and its tokenizer.json read by tokenizers 0.23.3, as servers and other languages do.
# One would guess: the arguments of a call hold for that call.
# Behavior: the call leaves them in the tokenizer, and saving writes them: for tokenizers every later text is cut to
# that length or padded to it, without a word. transformers itself does not show it, since it sets both anew in every
# call.
# Seen on 2026-11-30: a text of 20 tokens, after a call with max_length=8 and padding: 8 ids by tokenizers, 20 by
# transformers from the same folder, and 20 by tokenizers when saved before that call; one token becomes 8. The script
# fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cat > save.py <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, __version__

words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "boat": 2}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
text = "boat " * 20
tokenizer.save_pretrained("before")
tokenizer("boat", truncation=True, max_length=8, padding="max_length")
tokenizer.save_pretrained("after")
results = {}
for folder in ("before", "after"):
    raw = Tokenizer.from_file(f"{folder}/tokenizer.json")
    counts = [len(raw.encode(text).ids), len(raw.encode("boat").ids)]
    results[folder] = [*counts, len(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])]
    print(
        f"transformers {__version__}, saved {folder} the call: 20 words {counts[0]} ids, one word {counts[1]}; "
        f"20 words by transformers {results[folder][2]}"
    )
if results != {"before": [20, 1, 20], "after": [8, 8, 20]}:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python save.py
