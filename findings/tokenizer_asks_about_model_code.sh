#!/usr/bin/env bash
# transformers 4.57.6 and 5.24.0, AutoTokenizer.from_pretrained() of a folder whose tokenizer is a stock class and whose
# model has code of its own (auto_map in config.json, none in tokenizer_config.json), trust_remote_code not given.
# Behavior: 4.57.6 takes the class that tokenizer_config.json names and asks nothing. 5.24.0 loads the model's
# configuration first, so it prints "Do you wish to run the custom code? [y/N]" and waits 15 seconds for an answer where
# stdin stays silent; then it goes on, with the same tokenizer and without that code. trust_remote_code=False, which
# reads as the stricter choice, is the one that asks nothing. No key of the tokenizer's own files prevents the question.
# Seen on 2026-11-28: ids [1, 2] each time; asked False with 4.57.6, True with 5.24.0, False with 5.24.0 and
# trust_remote_code=False. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import contextlib
import io
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, __version__

folder = Path("toy")
folder.mkdir(exist_ok=True)
words = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "boat": 2}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.save(str(folder / "tokenizer.json"))
stock = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
(folder / "tokenizer_config.json").write_text(json.dumps(stock))
auto_map = {"AutoConfig": "configuration_toy.ToyConfig", "AutoModel": "modeling_toy.ToyModel"}
(folder / "config.json").write_text(json.dumps({"model_type": "toy", "auto_map": auto_map}))
(folder / "configuration_toy.py").write_text(
    "from transformers import PretrainedConfig\n\n\nclass ToyConfig(PretrainedConfig):\n    model_type = 'toy'\n"
)
is_new = __version__ == "5.24.0"
for options, expected in (({}, is_new), ({"trust_remote_code": False}, False)):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        ids = AutoTokenizer.from_pretrained("./toy", **options)("red boat")["input_ids"]
    asked = "Do you wish to run the custom code?" in shown.getvalue()
    print(f"transformers {__version__}, options {options}: ids {ids}, asked {asked}")
    if ids != [1, 2] or asked != expected:
        raise SystemExit("the behavior has changed")
PYTHON
cd "$folder"
for version in 4.57.6 5.24.0; do
    python3 -m venv "$version"
    "$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
    HF_HUB_OFFLINE=1 "$version/bin/python" show.py < /dev/null
done
