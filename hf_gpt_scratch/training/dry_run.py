"""Print sizes, steps, memory and time of a run without starting it or writing anything."""

from dataclasses import replace
from datetime import timedelta

import psutil
import torch
from accelerate import Accelerator
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.runtime.environment import describe_device
from hf_gpt_scratch.training.base_model import BaseModel, read_base_model, vocabulary_of, with_base_model
from hf_gpt_scratch.training.build import build_accelerator, build_windows
from hf_gpt_scratch.training.checkpoints.output_folder import refuse_used_folder
from hf_gpt_scratch.training.memory_estimate import estimate_memory
from hf_gpt_scratch.training.plan import check_prompt, cut_line, evaluations_line, fit_to_text, plan_evaluations
from hf_gpt_scratch.training.preflight import check_attention
from hf_gpt_scratch.training.reporting.mfu import flops_per_token, measure_peak_flops, product_dtype
from hf_gpt_scratch.training.reporting.trackers import check_trackers
from hf_gpt_scratch.training.settings import TrainingSettings


# Bytes that an allocator holds per byte in use, because blocks are freed in another order than they were taken:
# 1.1 to 1.4, measured on runs from 0.8 to 163 million parameters.
ALLOCATOR_OVERHEAD = 1.2


def dry_run(settings: TrainingSettings) -> list[str]:
    """Describe a run without writing anything; the text is read, the model only sketched.

    Returns:
        Lines to print; none on other processes than the main one.

    Raises:
        ValueError, OSError: the run would stop with this before its first step.
    """
    check_attention(settings)
    refuse_used_folder(settings)
    check_trackers(settings.report_to or [])
    base = read_base_model(settings)
    settings = with_base_model(settings, base)
    encoding = base.encoding if base is not None else load_encoding(settings.vocabulary or "gpt2")
    train_windows, validation_windows = build_windows(settings, encoding, vocabulary_of(settings, base))
    check_prompt(settings, encoding)
    accelerator = build_accelerator(settings)
    num_windows, num_processes, asked = len(train_windows), accelerator.num_processes, settings
    settings, steps_an_epoch, num_steps = fit_to_text(settings, num_windows, num_processes)
    if not accelerator.is_main_process:
        return []
    windows_a_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * num_processes
    config = model_config(settings, base)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config)
    # Before the memory, because it computes and so loads the libraries that a step will load.
    peak = settings.peak_flops or measure_peak_flops(accelerator.device, product_dtype(accelerator.mixed_precision))
    peak, flops = peak * num_processes, flops_per_token(model, settings.window_size)
    if settings.minutes is not None:
        tokens_a_step = train_windows.num_targets / steps_an_epoch
        num_steps = max(1, int(60 * settings.minutes * peak / (flops * tokens_a_step)))
        settings = replace(settings, warmup_steps=asked.warmup_steps, eval_steps=asked.eval_steps)
        settings = settings.with_num_steps(num_steps)
    tokens = train_windows.num_targets * num_steps / steps_an_epoch
    plan = plan_evaluations(settings, num_steps, len(validation_windows), num_processes)
    # A forward pass has a third of a step's operations.
    computed = tokens + plan.num_scored * settings.window_size / 3
    cut = cut_line(asked, settings, num_windows)
    return [
        f"device {describe_device(accelerator.device)}, processes {accelerator.num_processes}",
        f"model {model.num_parameters():,} parameters, context {config.max_position_embeddings} tokens",
        f"text {train_windows.num_targets:,} training tokens an epoch, {validation_windows.num_targets:,} validation "
        f"tokens; {windows_a_step * settings.window_size:,} tokens a step, {steps_an_epoch:,} steps an epoch, "
        f"{num_steps:,} steps, {tokens:,.0f} tokens",
        f"memory of a process about {process_memory(config, settings, accelerator) / 1e9:.2f} GB at its peak",
        *([line] if (line := evaluations_line(plan, settings)) else []),
        time_line(computed * flops, peak, settings.minutes),
        *([f"warning: {cut}"] if cut else []),
        "dry run: nothing was written",
    ]


def model_config(settings: TrainingSettings, base: BaseModel | None) -> PretrainedConfig:
    """Return the config of the model to train: that of the base model, or a fresh one."""
    config = settings.model_config() if base is None else base.config
    config.dropout, config.dtype = settings.dropout, getattr(torch, settings.weights_dtype)
    return config


def process_memory(config: PretrainedConfig, settings: TrainingSettings, accelerator: Accelerator) -> int:
    """Estimate the bytes at the peak of a run: allocated by PyTorch on a GPU, resident in a process on a CPU.

    DDP keeps a second copy of the gradients in its buckets. FSDP's shards are counted as whole tensors.
    """
    device = accelerator.device
    num_bytes = round(ALLOCATOR_OVERHEAD * estimate_memory(config, settings, device, accelerator.mixed_precision))
    if accelerator.num_processes > 1:
        with FakeTensorMode():
            itemsize = getattr(torch, settings.weights_dtype).itemsize
            num_bytes += itemsize * AutoModelForCausalLM.from_config(config).num_parameters()
    # By now the libraries and the text are loaded, as in the run.
    return num_bytes + (psutil.Process().memory_info().rss if device.type == "cpu" else 0)


def time_line(flops: float, peak: float, minutes: float | None) -> str:
    """Describe the least time of training and evaluations, at an MFU of 100 %, or what the minutes allow."""
    at_peak = f"{peak / 1e9:,.0f} GFLOP/s"
    if minutes is not None:
        return f"time {minutes:g} minutes; the steps are the most that they allow, at a peak of {at_peak}"
    seconds = flops / peak
    time = timedelta(seconds=round(seconds)) if seconds >= 1 else f"{seconds:.2g} s"
    return f"time at least {time} ({flops:.3g} FLOPs at a peak of {at_peak}), evaluations included"
