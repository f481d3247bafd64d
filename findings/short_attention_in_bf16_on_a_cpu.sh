#!/usr/bin/env bash
# torch 2.13.0 on a CPU that multiplies bf16 in hardware (avx512_bf16), scaled_dot_product_attention of short windows:
# 12 rows, 4 heads of 32, causal, 64 tokens; one thread, forward and backward.
# One would guess: bf16 takes no longer than float32, as a matrix product in bf16 takes half of the time here.
# Behavior: the forward pass takes about as long in both, forward and backward together in bf16 two to four times as long. Casting
# query, key and value to float32 and the output back is faster than attention in bf16. From 256 tokens on both take
# about as long.
# Seen on 2026-12-01, ms: a product 2.2 times as fast in bf16; 64 tokens, forward in float32 0.52, in bf16 0.66; with
# backward 1.59, 6.48, in bf16 with casts 1.72; 256 tokens with backward, float32 3.52, bf16 4.87.
# The script fails when bf16 is at most 1.2 times as slow as float32, or the casts do not help.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy
cat > attention.py <<'PYTHON'
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(1)
torch.manual_seed(0)


def seconds(rows, tokens, dtype, computed=None, backward=True):
    """The fastest of 60 times."""
    shape = (rows, tokens, 4, 32)  # as projections leave them in memory
    states = [torch.randn(shape).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    gradient = torch.randn(rows, 4, tokens, 32).to(dtype)
    best = float("inf")
    for _ in range(60):
        started = time.perf_counter()
        output = scaled_dot_product_attention(*[one.to(computed or dtype) for one in states], is_causal=True).to(dtype)
        if backward:
            torch.autograd.grad(output, states, gradient)
        best = min(best, time.perf_counter() - started)
    return 1000 * best


left, right = torch.randn(768, 512), torch.randn(512, 512)


def product(dtype):
    one, other, best = left.to(dtype), right.to(dtype), float("inf")
    for _ in range(60):
        started = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - started)
    return best


bf16, float32 = torch.bfloat16, torch.float32
print(f"a product, float32 / bf16: {product(float32) / product(bf16):.1f}")
forward = [seconds(12, 64, dtype, backward=False) for dtype in (float32, bf16)]
both = [seconds(12, 64, float32), seconds(12, 64, bf16), seconds(12, 64, bf16, computed=float32)]
print("64 tokens, ms: forward in float32 {:.2f}, in bf16 {:.2f};".format(*forward), end=" ")
print("with backward {:.2f}, {:.2f}, in bf16 with casts {:.2f}".format(*both))
longer = [seconds(2, 256, dtype) for dtype in (float32, bf16)]
print("256 tokens, ms: with backward in float32 {:.2f}, in bf16 {:.2f}".format(*longer))
if both[1] < 1.2 * both[0] or both[2] > both[1]:
    raise SystemExit("the behavior has changed")
PYTHON
env/bin/python attention.py
