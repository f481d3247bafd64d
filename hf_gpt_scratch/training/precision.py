"""Decide `--mixed_precision auto`: bf16 where the device multiplies it in hardware; in a resumed run as it began."""

import torch
from accelerate import PartialState

from hf_gpt_scratch.training.checkpoints.checkpoint import recorded_state
from hf_gpt_scratch.training.distributed import on_main_process
from hf_gpt_scratch.training.peak_flops import measure_peak_flops
from hf_gpt_scratch.training.settings import TrainingSettings


# Hardware for bf16 multiplies it two to sixteen times as fast as float32; where it is emulated, it is slower.
LEAST_SPEEDUP = 1.5


def decide_precision(settings: TrainingSettings, state: PartialState) -> str | None:
    """Return the precision, the same on all processes; say what `auto` takes. Collective: call on every process."""
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    precision, reason = on_main_process(state, lambda: begun_with(settings) or fastest(state.device))
    if state.is_main_process:
        print(f"--mixed_precision auto takes {precision}: {reason}", flush=True)
    return precision


def begun_with(settings: TrainingSettings) -> tuple[str, str] | None:
    """Return precision and reason of a run that is resumed; None if no checkpoint says which it has."""
    state = recorded_state(settings)
    precision = state.settings.get("mixed_precision") if state else None
    return (precision, "the run began with it") if precision else None


def fastest(device: torch.device) -> tuple[str, str]:
    """Measure products on a device: return "bf16" if they are clearly faster in it, else "no", and the reason."""
    best = dict.fromkeys((torch.bfloat16, torch.float32), 0.0)
    for dtype in 2 * tuple(best):  # in turn, because another process may have the device at a moment
        best[dtype] = max(best[dtype], measure_peak_flops(device, dtype))
    speedup = best[torch.bfloat16] / best[torch.float32]
    precision = "bf16" if speedup >= LEAST_SPEEDUP else "no"
    return precision, f"a matrix product in bf16 is {speedup:.2g} times as fast as in float32 here"
