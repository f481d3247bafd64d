"""Switch on the CPU-only optimizations of training; one flag, `--no_cpu_speedups`, leaves all of them off."""

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from hf_gpt_scratch.training.cpu.attention import use_blockwise_attention
from hf_gpt_scratch.training.cpu.bf16 import add_rows_of_tokens, convert_norms_once
from hf_gpt_scratch.training.cpu.threads import choose_threads
from hf_gpt_scratch.training.distributed import is_in_group
from hf_gpt_scratch.training.preflight import is_compiled
from hf_gpt_scratch.training.settings import TrainingSettings


DTYPES = {"no": "float32", "bf16": "bf16"}


def enable_cpu_speedups(prepared: nn.Module, settings: TrainingSettings, accelerator: Accelerator) -> list[str]:
    """Switch on what makes the training of a prepared model faster and smaller on a CPU. No-op on other devices.

    A choice of threads is printed with its times.

    Returns:
        A description of each other optimization that is on, with its reason.
    """
    if accelerator.device.type != "cpu" or not settings.cpu_speedups:
        return []
    enabled = switch_on(accelerator.unwrap_model(prepared), settings, accelerator)
    if line := choose_threads(prepared, settings, accelerator):  # last: a step is measured as it will be
        print(line, flush=True)
    return enabled


def switch_on(model: PreTrainedModel, settings: TrainingSettings, accelerator: Accelerator) -> list[str]:
    """Replace the parts of a model that this run can have faster or smaller, and describe each."""
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
