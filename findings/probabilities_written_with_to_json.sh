#!/usr/bin/env bash
# datasets 5.2.0 with pandas 3.1.1, Dataset.to_json() of float64 columns, read back with load_dataset("json").
# One would guess: numbers come back as they were, as with json.dumps() and with to_parquet().
# Behavior: they are rounded to ten digits after the point, since pandas writes them so: a probability below 5e-11
# becomes 0.0 (and its logarithm minus infinity), and 0.12345678901234 loses its last four digits. Large numbers keep
# theirs, so that a look at a usual column shows nothing. to_json(double_precision=15) keeps these.
# Seen on 2026-11-30: [1e-12, 0.12345678901234, 2.5] comes back as [0.0, 0.123456789, 2.5], from parquet exactly. The
# script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check datasets==5.2.0 pandas==3.1.1
cat > write.py <<'PYTHON'
import json

import datasets

datasets.disable_progress_bars()
numbers = [1e-12, 0.12345678901234, 2.5]
rows = datasets.Dataset.from_dict({"p": numbers})
rows.to_json("rows.jsonl")
rows.to_parquet("rows.parquet")
found = {
    kind: datasets.load_dataset(kind, data_files=file, split="train")["p"][:]
    for kind, file in (("json", "rows.jsonl"), ("parquet", "rows.parquet"))
}
by_hand = [json.loads(json.dumps(number)) for number in numbers]
print(f"datasets {datasets.__version__}: {numbers} comes back as {found}, with json.dumps() {by_hand}")
if found != {"json": [0.0, 0.123456789, 2.5], "parquet": numbers} or by_hand != numbers:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python write.py
