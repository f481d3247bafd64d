"""Print sizes, steps, memory and time of a run without starting it or writing anything."""

import math
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from transformers import PretrainedConfig

from hf_gpt_scratch.runtime.environment import describe_device
from hf_gpt_scratch.runtime.signals import StopSignals
from hf_gpt_scratch.runtime.stopwatch import Stopwatch
from hf_gpt_scratch.training.base_model import BaseModel, read_base_model, with_base_model
from hf_gpt_scratch.training.build import build_accelerator, build_texts, prepare_run, process_state
from hf_gpt_scratch.training.checkpoints.output_folder import VOCABULARY_FOLDER, refuse_used_folder
from hf_gpt_scratch.training.memory_estimate import estimate_memory, sketch
from hf_gpt_scratch.training.minutes.choose_settings import choose_settings
from hf_gpt_scratch.training.minutes.time_budget import fit_to_minutes, seconds_besides_steps, seconds_to_result
from hf_gpt_scratch.training.peak_flops import measure_peak_flops, product_dtype
from hf_gpt_scratch.training.plan import cut_line, evaluations_line, fit_to_text, plan_evaluations, with_fitting_batch
from hf_gpt_scratch.training.preflight import check_attention
from hf_gpt_scratch.training.reporting.mfu import flops_per_token
from hf_gpt_scratch.training.reporting.trackers import check_trackers
from hf_gpt_scratch.training.run import Run
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.stopping import largest


# Bytes that an allocator holds per byte in use, because blocks are freed in another order than they were taken:
# 1.1 to 1.4, measured on runs from 0.8 to 163 million parameters.
ALLOCATOR_OVERHEAD = 1.2


def dry_run(settings: TrainingSettings, begun: float | None = None) -> list[str]:
    """Describe a run without writing anything: the text is read, the model built and a step measured if it fits.

    Collective: call on every process.

    Args:
        settings: of the run.
        begun: when the process began, by `time.perf_counter()`; None: now.

    Returns:
        Lines to print; none on other processes than the main one.

    Raises:
        ValueError, OSError: the run would stop with this before its first step.
    """
    stopwatch = Stopwatch(begun)
    check_attention(settings)
    refuse_used_folder(settings)
    check_trackers(settings.report_to or [])
    with tempfile.TemporaryDirectory() as folder:
        if settings.choose:
            settings = choose_settings(settings, process_state(settings), Path(folder, VOCABULARY_FOLDER))
        base = read_base_model(settings)
        return look(with_base_model(settings, base), base, stopwatch)


def look(asked: TrainingSettings, base: BaseModel | None, stopwatch: Stopwatch) -> list[str]:
    """Describe a run whose settings are decided. Collective: call on every process."""
    texts = build_texts(asked, base)
    accelerator = build_accelerator(asked)
    num_processes, targets = accelerator.num_processes, texts.train.num_targets
    settings, steps_an_epoch, num_steps = fit_to_text(asked, len(texts.train), num_processes)
    config = model_config(settings, base)
    # Before the memory, because it computes and so loads the libraries that a step will load.
    peak = settings.peak_flops or measure_peak_flops(accelerator.device, product_dtype(accelerator.mixed_precision))
    memory = process_memory(config, settings, accelerator)
    if fits(memory, accelerator):
        settings = replace(settings, peak_flops=peak)
        run = prepare_run(settings, accelerator, base, texts, num_steps, StopSignals("stopped"), stopwatch)
        run = run if settings.minutes is None else fit_to_minutes(run, asked)
        settings, num_steps, plan, time = run.settings, run.num_steps, run.evaluation_plan, measured_time(run)
    else:
        flops = flops_per_token(sketch(config), settings.window_size)
        if not settings.peak_flops:  # nothing else is measured, and the first moment may have been a bad one
            dtype = product_dtype(accelerator.mixed_precision)
            peak = max(peak, measure_peak_flops(accelerator.device, dtype))
        if settings.minutes is not None:
            num_steps = max(1, int(60 * settings.minutes * peak * num_processes * steps_an_epoch / (flops * targets)))
            settings = with_fitting_batch(asked, len(texts.train), num_processes).with_num_steps(num_steps)
        plan = plan_evaluations(settings, num_steps, len(texts.validation), num_processes)
        trained, scored = targets * num_steps / steps_an_epoch, plan.num_scored * settings.window_size
        time = least_time(trained, scored, flops, peak * num_processes, settings.minutes)
    windows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * num_processes
    lines = [
        f"device {describe_device(accelerator.device)}, processes {num_processes}",
        f"model {sketch(config).num_parameters():,} parameters, context {config.max_position_embeddings} tokens",
        f"text {targets:,} training tokens an epoch, {texts.validation.num_targets:,} validation tokens; "
        f"{windows * settings.window_size:,} tokens a step, {steps_an_epoch:,} steps an epoch, {num_steps:,} steps, "
        f"{targets * num_steps / steps_an_epoch:,.0f} tokens",
        f"memory of a process about {memory / 1e9:.2f} GB at its peak",
        *([line] if (line := evaluations_line(plan, settings)) else []),
        time,
        *([f"warning: {line}"] if (line := cut_line(asked, settings, len(texts.train))) else []),
        "dry run: nothing was written",
    ]
    return lines if accelerator.is_main_process else []


def fits(num_bytes: int, accelerator: Accelerator) -> bool:
    """Tell if every process finds the memory that it takes at its peak. Collective: call on every process."""
    if accelerator.device.type == "cpu":
        more = (num_bytes - psutil.Process().memory_info().rss) * accelerator.num_processes
        is_short = more > psutil.virtual_memory().available
    else:
        is_short = accelerator.device.type != "cuda" or num_bytes > torch.cuda.mem_get_info(accelerator.device)[0]
    return not largest(accelerator, [float(is_short)])[0]


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
        num_bytes += getattr(torch, settings.weights_dtype).itemsize * sketch(config).num_parameters()
    # By now the libraries and the text are loaded, as in the run.
    return num_bytes + (psutil.Process().memory_info().rss if device.type == "cpu" else 0)


def measured_time(run: Run) -> str:
    """Describe the time of a run by that of its parts on this machine, or what its minutes allow."""
    if run.settings.minutes is not None:
        return f"time {run.settings.minutes:g} minutes; the steps are about as many as they allow"
    total, besides = (
        timedelta(seconds=math.ceil(seconds))
        for seconds in (run.start_seconds + seconds_to_result(run), run.start_seconds + seconds_besides_steps(run))
    )
    return (
        f"time about {total} by a measured micro-batch, of which {besides} start, evaluations, samples, checkpoints "
        "and end; --minutes would bound it"
    )


def least_time(trained: float, scored: float, token_flops: float, peak: float, minutes: float | None) -> str:
    """Describe the least time of tokens trained on and scored, at an MFU of 100 %, or what the minutes allow."""
    at_peak = f"{peak / 1e9:,.0f} GFLOP/s"
    if minutes is not None:
        return f"time {minutes:g} minutes; the steps are the most that they allow, at a peak of {at_peak}"
    flops = (trained + scored / 3) * token_flops  # a forward pass has a third of a step's operations
    seconds = flops / peak
    time = timedelta(seconds=round(seconds)) if seconds >= 1 else f"{seconds:.2g} s"
    return (
        f"time at least {time} ({flops:.3g} FLOPs at a peak of {at_peak}), evaluations included; not measured, "
        "because the memory of this machine does not suffice"
    )
