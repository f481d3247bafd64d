#!/usr/bin/env bash
# datasets 5.2.0, rows that each have tools of their own, rendered with apply_chat_template() of transformers 5.24.0.
# One would guess: a row's prompt names that row's tools, as it does when the row does not go through a data set.
# Behavior: Dataset.from_list() makes one structure of all rows' schemas, so that every tool gets the parameters of all
# others, as null. A template writes tools as JSON, null and all: the model is trained on tools that do not exist. The
# same rows from a JSON file are right, since load_dataset("json") keeps such columns as they are.
# Seen on 2026-11-30: the prompt of the row without "city" is {"name": "roll", "parameters": {"city": null, "sides":
# {"type": "integer"}}} by from_list(), and without "city" from the file and from the plain row. The script fails when
# that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check datasets==5.2.0 transformers==5.24.0 \
    tokenizers==0.23.3 jinja2
cat > tools.py <<'PYTHON'
import json
from pathlib import Path

import datasets
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

datasets.disable_progress_bars()
words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
tokenizer.chat_template = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ messages[0].content }}"
weather = {"name": "weather", "parameters": {"city": {"type": "string"}}}
roll = {"name": "roll", "parameters": {"sides": {"type": "integer"}}}
rows = [{"messages": [{"role": "user", "content": "Go."}], "tools": [tool]} for tool in (weather, roll)]
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompt(row):
    return tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)


plain = prompt(rows[1])
by_list = prompt(datasets.Dataset.from_list(rows)[1])
by_file = prompt(datasets.load_dataset("json", data_files="rows.jsonl", split="train")[1])
print(f"datasets {datasets.__version__}\n  plain row   {plain}\n  from_list() {by_list}\n  JSON file   {by_file}")
if '"city": null' not in by_list or "city" in plain or by_file != plain:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python tools.py
