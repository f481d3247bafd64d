#!/usr/bin/env bash
# torch 2.13.0, torch.onnx.export() of a model that is in training mode (as one is right after its training, or after it
# was built from a configuration), run with onnxruntime 1.31.1.
# One would guess: the file is for inference. The older exporter (dynamo=False) switches to evaluation for the export,
# and an inference engine leaves dropout out anyhow.
# Behavior: the exporter that is used now writes Dropout nodes whose training_mode is true, without a word, and
# onnxruntime obeys: half of the values are zero, the rest is doubled, and every run gives others.
# Seen on 2026-11-30, onnx 1.23.2, onnxscript 0.7.2, share of zeros in 1000 outputs whose right value is 1: about 0.5
# and two unequal runs; dynamo=False 0.0, eval() before the export 0.0. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy \
    onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1
cat > export.py <<'PYTHON'
import contextlib
import io

import numpy
import onnxruntime
import torch


def exported(training, dynamo):
    """Return the outputs of two runs of the exported model, whose layer gives 1 everywhere."""
    layer = torch.nn.Linear(4, 1000)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    model = torch.nn.Sequential(layer, torch.nn.Dropout(0.5)).train(training)
    inputs = torch.ones(1, 4)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (inputs,), "model.onnx", dynamo=dynamo)
    session = onnxruntime.InferenceSession("model.onnx")
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    return [session.run(None, feed)[0] for _ in range(2)]


results = {}
for training, dynamo in ((True, True), (True, False), (False, True)):
    first, second = exported(training, dynamo)
    share, equal = round(float((first == 0).mean()), 2), bool(numpy.array_equal(first, second))
    results[training, dynamo] = (share, equal)
    print(f"training mode {training}, dynamo={dynamo}: share of zeros {share}, two runs equal {equal}")
share, equal = results[True, True]
if not 0.3 < share < 0.7 or equal or results[True, False] != (0.0, True) or results[False, True] != (0.0, True):
    raise SystemExit("the behavior has changed")
PYTHON
env/bin/python export.py 2> log || { cat log; exit 1; }
