#!/usr/bin/env bash
# torch 2.13.0, torch.utils.flop_counter.FlopCounterMode around scaled_dot_product_attention() on a CPU.
# One would guess: attention counts the same however it is computed, and an operation that cannot be counted is named.
# Behavior: it counts 0, forward and backward, without a word, because the fused kernel of the CPU is not in the
# counter's table. So a model with "sdpa" seems to need fewer operations than the same one with "eager", and a share of
# the peak (MFU) worked out from it is too low, the more the longer the context. The math kernel is counted, on a CPU
# too.
# Seen on 2026-11-30, one head of 64 and 128 tokens, forward and backward: fused 0, by two products and math kernel
# 4194304 forward and 8388608 backward. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy
cat > count.py <<'PYTHON'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode


def by_products(query, key, value):
    return (query @ key.transpose(-1, -2) / 8).softmax(-1) @ value


def by_math(query, key, value):
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(query, key, value)


def counted(attention):
    """Return the operations counted in the forward and in the backward pass."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, 1, 128, 64, requires_grad=True) for _ in range(3)]
    with FlopCounterMode(display=False) as forward:
        output = attention(*inputs)
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops(), output.detach()


fused, products, math = (counted(attention) for attention in (scaled_dot_product_attention, by_products, by_math))
print(f"torch {torch.__version__}: fused {fused[:2]}, by products {products[:2]}, math kernel {math[:2]}")
torch.testing.assert_close(fused[2], products[2], rtol=1e-4, atol=1e-5)
expected = (4 * 128 * 128 * 64, 8 * 128 * 128 * 64)
if fused[:2] != (0, 0) or products[:2] != expected or math[:2] != expected:
    raise SystemExit("the behavior has changed")
PYTHON
env/bin/python count.py
