"""Measure the peak FLOP/s of a device: the speed of a large matrix product, in the dtype that a run multiplies in."""

import time

import torch
from torch import nn


def product_dtype(mixed_precision: str) -> torch.dtype:
    """Return the dtype of matrix products under Accelerate's "no", "bf16" or "fp16"."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision, torch.float32)


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a large matrix product on a device: the best within 0.3 seconds.

    The matrices grow until a product takes 10 ms, so that a fast device is filled and a slow one not kept busy. On
    a shared machine the figure is too low: give the peak if you know it.
    """
    size, best = 256, 0.0
    until = time.perf_counter() + 0.3
    while time.perf_counter() < until:
        generator = torch.Generator(device).manual_seed(0)
        matrix = torch.rand(size, size, device=device, dtype=dtype, generator=generator)
        seconds = min(seconds_of_product(matrix) for _ in range(3))
        best = max(best, 2 * size**3 / seconds)
        if seconds < 0.01 and size < 8192:
            size *= 2
    return best


def seconds_of_product(matrix: torch.Tensor) -> float:
    """Measure the time of `matrix @ matrix.T`, as the model's layers multiply, synchronized before and after."""
    synchronize(matrix.device)
    started = time.perf_counter()
    nn.functional.linear(matrix, matrix)
    synchronize(matrix.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
