#!/usr/bin/env bash
# transformers 5.24.0, Trainer with train_sampling_strategy="group_by_length", then predict() of a test set.
# One would guess: a strategy whose name says "train" shapes the batches of training, and predict() answers row by row.
# Behavior: predict() and evaluate() group by length as well, and nothing undoes it: predictions and label_ids come back
# in a shuffled order, without a word. compute_metrics is still right, since both are shuffled alike, but what is
# written beside the rows of the data set belongs to other rows. With the default strategy the order is that of the
# rows.
# Seen on 2026-11-30, torch 2.13.0, 12 rows whose labels are their numbers: with "random" [1, 2, ..., 12], with
# "group_by_length" [3, 7, 2, 9, 1, 8, 12, 5, 11, 6, 4, 10], or another such order. The script fails when the second is
# in order, or the first is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 transformers==5.24.0 \
    accelerate==1.15.0 numpy
cat > predict.py <<'PYTHON'
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16))
rows = []
for number in range(1, 13):
    ids = [number] * (1 + number * 7 % 11)
    rows.append({"input_ids": ids, "labels": ids})
orders = {}
for strategy in ("random", "group_by_length"):
    options = {"per_device_eval_batch_size": 1, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments("out", train_sampling_strategy=strategy, **options)
    found = Trainer(model, arguments, train_dataset=rows).predict(rows)
    orders[strategy] = [int(labels[0]) for labels in found.label_ids]
    print(f"transformers {transformers.__version__}, {strategy}: rows {orders[strategy]}")
in_order = list(range(1, 13))
shuffled = orders["group_by_length"]
if orders["random"] != in_order or shuffled == in_order or sorted(shuffled) != in_order:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home HF_HUB_OFFLINE=1 env/bin/python predict.py
