"""Switch on the CPU-only optimizations of training; one flag, `--no_cpu_speedups`, leaves all of them off."""

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_gpt_scratch.training.cpu.attention import use_blockwise_attention
from hf_gpt_scratch.training.cpu.bf16 import add_rows_of_tokens, convert_norms_once
from hf_gpt_scratch.training.distributed import is_in_group
from hf_gpt_scratch.training.preflight import is_compiled
from hf_gpt_scratch.training.settings import TrainingSettings


DTYPES = {"no": "float32", "bf16": "bf16"}


def enable_cpu_speedups(model: PreTrainedModel, settings: TrainingSettings, accelerator: Accelerator) -> list[str]:
    """Switch on what makes the training of this model faster and smaller on a CPU. No-op on other devices.

    Returns:
        A description of each optimization that is on, with its reason.
    """
    if accelerator.device.type != "cpu" or not settings.cpu_speedups:
        return []
    if is_compiled(settings, accelerator) or accelerator.is_fsdp2 or model.dtype != torch.float32:
        return []
    enabled, dtype = [], DTYPES[accelerator.mixed_precision]
    if settings.attn_implementation == "sdpa" and settings.dropout > 0:
        use_blockwise_attention(model)
        enabled.append(f"blockwise attention (dropout {settings.dropout:g} in {dtype})")
    if dtype == "bf16":
        convert_norms_once(model)
        enabled.append("one conversion of each norm (bf16)")
        if not settings.optimizer_in_backward and not is_in_group(accelerator):
            add_rows_of_tokens(model)
            enabled.append("embedding gradient by rows (bf16)")
    return enabled
