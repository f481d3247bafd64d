#!/usr/bin/env bash
# litdata 0.2.59, optimize(), and in the same process torch 2.13.0's DataLoader with a worker over data of its own.
# One would guess: how optimize() starts its processes, which its `start_method` says, is its own affair.
# Behavior: it sets the start method of the whole process to "spawn" and leaves it so; with verbose=False nothing says
# it. From then on each epoch of any DataLoader starts a new Python that imports torch and the script's other modules
# again, where before it forked. litgpt 0.5.13's first `pretrain` on text files is slow by this, and its second, which
# finds the tokens written, is not: on a text of four batches an epoch began after 6 to 7 s, and after 1.4 s.
# Seen on 2026-12-01, Python 3.11, 2 cores, seconds of an epoch of 4 batches, mean of three: before 0.04 (fork), after
# 1.97 (spawn). The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 litdata==0.2.59 numpy
cat > epochs.py <<'PYTHON'
import multiprocessing
import time

import torch
from litdata import optimize
from torch.utils.data import DataLoader, TensorDataset


def row(number):
    return torch.tensor([number])


def time_epochs():
    loader = DataLoader(TensorDataset(torch.arange(16)), batch_size=4, num_workers=1)
    start = time.perf_counter()
    for _ in range(3):
        if len(list(loader)) != 4:
            raise SystemExit("an epoch has not four batches")
    return multiprocessing.get_start_method(), (time.perf_counter() - start) / 3


if __name__ == "__main__":
    times = [time_epochs()]
    optimize(row, list(range(16)), "data", num_workers=1, chunk_bytes="1MB", verbose=False)
    times.append(time_epochs())
    (before, seconds), (after, later) = times
    print(f"an epoch before optimize(): {seconds:.2f} s ({before}), after: {later:.2f} s ({after})")
    if (before, after) != ("fork", "spawn") or later < 4 * seconds:
        raise SystemExit("the behavior has changed")
PYTHON
unset PYTHONDONTWRITEBYTECODE  # compiled modules are kept, as is usual
LITDATA_DISABLE_VERSION_CHECK=1 env/bin/python -W ignore epochs.py 2> log || { cat log; exit 1; }
