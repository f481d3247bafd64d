#!/usr/bin/env bash
# datasets 5.2.0, an IterableDataset of several shards, split by take() and skip(), read by torch 2.13.0's DataLoader.
# One would guess: take(8) is the first eight rows and skip(8) all others, so they make a validation and a training set.
# Behavior: with workers the shards go to the workers first, and the number is shared out among them: which rows the two
# hold depends on num_workers. Validation in the main process and training with workers, a usual pair, then overlap:
# training sees rows of the validation set, and others are in neither. No warning. Equal numbers of workers are right.
# Seen on 2026-11-30, 20 rows in 4 shards: take(8) with 0 workers [0..7], skip(8) with 4 workers [2, 3, 4, 7, 8, 9, 12,
# 13, 14, 17, 18, 19]: 2, 3, 4 and 7 in both, 10, 11, 15 and 16 in none. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 datasets==5.2.0 numpy
cat > split.py <<'PYTHON'
import datasets
from torch.utils.data import DataLoader

rows = datasets.Dataset.from_dict({"row": list(range(20))}).to_iterable_dataset(num_shards=4)


def read(part, workers):
    return {row for batch in DataLoader(part, batch_size=2, num_workers=workers) for row in batch["row"].tolist()}


results = []
for workers in (0, 4):
    validation, training = read(rows.take(8), 0), read(rows.skip(8), workers)
    both, neither = sorted(validation & training), sorted(set(range(20)) - validation - training)
    results.append((both, neither))
    print(
        f"datasets {datasets.__version__}, validation in the main process, training with {workers} workers: "
        f"in both {both}, in neither {neither}"
    )
alike = read(rows.take(8), 4) & read(rows.skip(8), 4)
print(f"4 workers for each: in both {sorted(alike)}")
if results != [([], []), ([2, 3, 4, 7], [10, 11, 15, 16])] or alike:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python -W ignore split.py
