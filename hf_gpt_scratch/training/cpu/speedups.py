"""Switch on the CPU-only optimizations of training; one flag, `--no_cpu_speedups`, leaves all of them off."""

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_gpt_scratch.training.cpu.attention import use_blockwise_attention
from hf_gpt_scratch.training.preflight import is_compiled
from hf_gpt_scratch.training.settings import TrainingSettings


def enable_cpu_speedups(model: PreTrainedModel, settings: TrainingSettings, accelerator: Accelerator) -> list[str]:
    """Switch on what makes the training of this model faster and smaller on a CPU. No-op on other devices.

    Returns:
        A description of each optimization that is on, with its reason.
    """
    if accelerator.device.type != "cpu" or not settings.cpu_speedups:
        return []
    is_plain = not is_compiled(settings, accelerator) and not accelerator.is_fsdp2
    is_float32 = accelerator.mixed_precision == "no" and model.dtype == torch.float32
    if is_plain and is_float32 and settings.attn_implementation == "sdpa" and settings.dropout > 0:
        use_blockwise_attention(model)
        return [f"blockwise attention (dropout {settings.dropout:g} in float32)"]
    return []
