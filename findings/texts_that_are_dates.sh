#!/usr/bin/env bash
# datasets 5.2.0, load_dataset("json") of JSON Lines whose texts are dates in quotes.
# One would guess: what is a string in JSON is that string in the data set, at the latest where Features say
# Value("string").
# Behavior: if all of them look like ISO dates the column becomes a timestamp and each text a datetime. Declared as a
# string, the column is cast from the timestamp and holds another text: "2024-01-01" has become "2024-01-01 00:00:00",
# and is tokenized so. One other text among them, and all stay as they are: a small sample and the whole file differ.
# json.loads() and Dataset.from_list() keep them.
# Seen on 2026-11-30 with pyarrow 26.0.1: by default timestamp[s], with Value("string") ["2024-01-01 00:00:00",
# "2024-05-06 00:00:00"], with a third text "soon", or with from_list(), ["2024-01-01", "2024-05-06"]. The script fails
# when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
cat > dates.py <<'PYTHON'
import json
from pathlib import Path

import datasets

datasets.disable_progress_bars()
dates = ["2024-01-01", "2024-05-06"]


def loaded(texts, features=None):
    """Return the column's type and its first two texts, out of a file of these texts."""
    file = Path(f"{len(texts)}.jsonl")
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = datasets.load_dataset("json", data_files=str(file), split="train", features=features)
    return rows.features["text"].dtype, [str(text) for text in rows["text"][:2]]


listed = datasets.Dataset.from_list([{"text": date} for date in dates])
strings = datasets.Features({"text": datasets.Value("string")})
found = {
    "dates alone": loaded(dates),
    "declared as strings": loaded(dates, strings),
    "with another text": loaded([*dates, "soon"]),
    "from_list()": (listed.features["text"].dtype, listed["text"][:]),
}
for name, (kind, texts) in found.items():
    print(f"datasets {datasets.__version__}, {name}: {kind}, {texts}")
midnight = [date + " 00:00:00" for date in dates]
expected = [("timestamp[s]", midnight), ("string", midnight), ("string", dates), ("string", dates)]
if list(found.values()) != expected:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python dates.py
