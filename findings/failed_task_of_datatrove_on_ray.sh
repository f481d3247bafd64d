#!/usr/bin/env bash
# Surprise: a task fails on Ray, and datatrove's RayPipelineExecutor.run() returns as if nothing had happened: the
# program goes on with what is there and ends with 0. The same pipeline in LocalPipelineExecutor raises the step's
# exception. With datatrove 0.10.1, ray 2.60.0; the log says "Only 1/2 tasks completed". Seen on 2026-11-30.
# Way out: after run(), raise if executor.get_incomplete_ranks() is not empty. Exits non-zero if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'datatrove[io]==0.10.1' ray==2.60.0
cat > show.py <<'PYTHON'
import sys

import ray
from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor


def refuse_the_second(data, rank, world_size):
    if rank == 1:
        raise ValueError("task 1 cannot be done")
    yield from data or []


found = {}
for kind in (LocalPipelineExecutor, RayPipelineExecutor):
    if kind is RayPipelineExecutor:
        ray.init(num_cpus=1, include_dashboard=False)
    executor = kind([refuse_the_second], tasks=2, workers=1, logging_dir=f"{sys.argv[1]}/{kind.__name__}")
    try:
        executor.run()
        found[kind.__name__] = "returned"
    except ValueError as error:
        found[kind.__name__] = str(error)
    found[kind.__name__] += f", incomplete: {executor.get_incomplete_ranks()}"
print(found)
assert found["LocalPipelineExecutor"] == "task 1 cannot be done, incomplete: [1]"
assert found["RayPipelineExecutor"] == "returned, incomplete: [1]"
PYTHON
if HOME="$folder" RAY_USAGE_STATS_ENABLED=0 venv/bin/python show.py "$folder" > log 2>&1; then
    grep RayPipelineExecutor log | tail -n 1
else
    tail -n 20 log
    exit 1
fi
