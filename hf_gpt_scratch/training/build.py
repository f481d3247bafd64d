"""Build a run from its settings, fresh or resumed, up to the moment before the first step."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import tiktoken
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
    set_seed,
)
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_gpt_scratch.data.document_sources import (
    hashes_of_equal_size,
    refuse_unused_column,
    warn_of_copies,
    warn_of_shared,
)
from hf_gpt_scratch.data.sample_texts import SAMPLE_TEXTS
from hf_gpt_scratch.data.token_folder import ShardedTokens, read_index
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.vocabulary import Vocabulary
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from hf_gpt_scratch.data.windows import (
    StepSampler,
    TokenWindows,
    build_loader,
    document_blocks,
    encode_text,
    find_text_files,
    split_blocks,
)
from hf_gpt_scratch.evaluation import mean_token_bytes, tokenize_in_pieces
from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss
from hf_gpt_scratch.runtime.cli import say_once
from hf_gpt_scratch.runtime.environment import as_line, describe_device, key_versions
from hf_gpt_scratch.runtime.signals import StopSignals
from hf_gpt_scratch.runtime.stopwatch import Stopwatch
from hf_gpt_scratch.training.activation_checkpointing import recompute_activations
from hf_gpt_scratch.training.base_model import BaseModel, load_base_model, read_base_model, with_base_model
from hf_gpt_scratch.training.checkpoints.output_folder import (
    VOCABULARY_FOLDER,
    FolderLock,
    claim_folder,
    clear_leftovers,
)
from hf_gpt_scratch.training.checkpoints.resume import expected_before, find_resumable, resume, with_its_warmup
from hf_gpt_scratch.training.cpu.speedups import enable_cpu_speedups
from hf_gpt_scratch.training.distributed import complete_fsdp, on_main_process, refuse_deepspeed
from hf_gpt_scratch.training.freezing import freeze
from hf_gpt_scratch.training.minutes.choose_settings import choose_settings
from hf_gpt_scratch.training.minutes.time_budget import expect_steps, fit_to_minutes, length_line, seconds_to_result
from hf_gpt_scratch.training.optim import build_optimizer, reset_to_torch_defaults
from hf_gpt_scratch.training.optimizer_in_backward import StepsInBackward, refuse_where_impossible
from hf_gpt_scratch.training.peak_flops import measure_peak_flops, product_dtype
from hf_gpt_scratch.training.plan import (
    check_prompt,
    cut_line,
    evaluation_batch_size,
    evaluations_line,
    fit_to_text,
    plan_evaluations,
)
from hf_gpt_scratch.training.precision import decide_precision
from hf_gpt_scratch.training.preflight import check_attention, check_compiler, try_step
from hf_gpt_scratch.training.reporting.card_sections import describe_texts
from hf_gpt_scratch.training.reporting.history import History
from hf_gpt_scratch.training.reporting.hub_pushes import warn_early
from hf_gpt_scratch.training.reporting.loss_plot import LossPlot
from hf_gpt_scratch.training.reporting.mfu import ModelFlops, flops_per_token
from hf_gpt_scratch.training.run import Parts, Run, Texts
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.speed import Speed, measure_speed


if TYPE_CHECKING:
    from hf_gpt_scratch.data.tokenizer import AnyTokenizer

# Bytes for each byte of a text file: 12 for a token while it is encoded, and up to half a token for a byte.
MEMORY_OF_TEXT = 6


def set_up(settings: TrainingSettings, lock: FolderLock, signals: StopSignals, stopwatch: Stopwatch) -> Run:
    """Build a run from its settings, fresh or resumed, up to the moment before the first step.

    The lock of the output folder is taken here and released by the caller, who has entered the signals; the stopwatch
    counts the wall time of the run. Collective: call on every process.

    Raises:
        ValueError, OSError: settings, text, folder or checkpoint do not allow it; nothing was written.
    """
    check_attention(settings)
    if settings.choose:
        state = process_state(settings)
        on_main_process(state, lambda: claim_folder(settings, lock, make=True))
        settings = choose_settings(settings, state, Path(settings.output_dir) / VOCABULARY_FOLDER)
    accelerator = build_accelerator(settings)
    if settings.mixed_precision == "auto":
        settings = replace(settings, mixed_precision=accelerator.mixed_precision)
    on_main_process(accelerator, lambda: claim_folder(settings, lock, make=False))
    base = read_base_model(settings)
    asked = settings = with_base_model(settings, base)
    texts = build_texts(settings, base)
    settings, _, num_steps = fit_to_text(settings, len(texts.train), accelerator.num_processes)
    run = prepare_run(settings, accelerator, base, texts, num_steps, signals, stopwatch)
    on_main_process(accelerator, lambda: claim_folder(settings, lock, make=True))
    on_main_process(accelerator, lambda: clear_leftovers(run.output_dir))
    checkpoint = find_resumable(run) if settings.resume else None
    if checkpoint is None:
        run = run if settings.minutes is None else fit_to_minutes(run, asked)
        begin(run)
    else:
        run = run if settings.minutes is None else expect_steps(run, asked, expected_before(run, checkpoint))
        run = with_its_warmup(run, checkpoint) if asked.warmup_steps is None else run
        resume(run, checkpoint)
    if line := cut_line(asked, settings, len(texts.train)):
        run.say(f"warning: {line}")
    describe(run)
    return run


def prepare_run(
    settings: TrainingSettings,
    accelerator: Accelerator,
    base: BaseModel | None,
    texts: Texts,
    num_steps: int,
    signals: StopSignals,
    stopwatch: Stopwatch,
) -> Run:
    """Build loaders, model and optimizer, have Accelerate prepare them, and try a step where it may not work."""
    accelerator.gradient_accumulation_steps = settings.gradient_accumulation_steps
    built = build_loaders(settings, texts, accelerator)
    model = build_model(settings, accelerator.process_index)
    optimizer = build_optimizer(model, settings)
    prepared_model, prepared_optimizer, *loaders = accelerator.prepare(model, optimizer, *built)
    try_step(prepared_model, settings, accelerator)
    cpu_speedups = enable_cpu_speedups(prepared_model, settings, accelerator)
    speed = measure_speed(prepared_model, prepared_optimizer.optimizer, settings, accelerator)
    history = History(Path(settings.output_dir) / "history.jsonl", writes=accelerator.is_main_process)
    return Run(
        settings=settings,
        accelerator=accelerator,
        base=base,
        texts=texts,
        model=prepared_model,
        # Accelerate's wrapper looks for an installed package at each step, and only a gradient scaler needs it.
        optimizer=prepared_optimizer if accelerator.scaler is not None else prepared_optimizer.optimizer,
        loaders=Parts(*loaders),
        samplers=Parts(*(cast(StepSampler, loader.batch_sampler) for loader in built)),
        evaluation_plan=plan_evaluations(settings, num_steps, len(texts.validation), accelerator.num_processes),
        expected_steps=num_steps,
        speed=speed,
        stopwatch=stopwatch,
        flops=model_flops(model, settings, accelerator, speed),
        cpu_speedups=cpu_speedups,
        steps_in_backward=StepsInBackward(model, optimizer) if settings.optimizer_in_backward else None,
        history=history,
        loss_plot=LossPlot(history),
        signals=signals,
    )


def build_loaders(settings: TrainingSettings, texts: Texts, accelerator: Accelerator) -> list[DataLoader]:
    """Build the loaders of the `Parts` of a run, for all processes."""
    micro_batch_size = settings.per_device_train_batch_size * accelerator.num_processes
    validation_batch_size = evaluation_batch_size(settings, len(texts.validation), accelerator.num_processes)
    loaders = [
        build_loader(texts.train, micro_batch_size * settings.gradient_accumulation_steps, settings.drop_last),
        build_loader(texts.train, micro_batch_size, settings.drop_last),
        build_loader(texts.validation, validation_batch_size),
    ]
    for loader in loaders:
        loader.pin_memory = accelerator.device.type == "cuda"  # from other memory, a copy would wait for the device
    return loaders


def build_texts(settings: TrainingSettings, base: BaseModel | None) -> Texts:
    """Read, split and cut the tokens to train and to validate on.

    Raises:
        ValueError, OSError: a file cannot be used, a part is too short, or the prompt of samples does not fit; the
            line names it.
    """
    vocabulary = load_vocabulary(settings.vocabulary or "gpt2") if base is None else base.vocabulary
    encoding = base.encoding if base is not None else load_encoding(settings.vocabulary or "gpt2")
    separator = end_of_text_id(encoding) if settings.separate_documents else None
    is_split = settings.validation_file is None and settings.train_data is None
    windows = []
    for part, token_ids in zip(("training", "validation"), read_tokens(settings, encoding, vocabulary), strict=True):
        # Training wants one full window; a short validation text is scored as it is.
        needed = settings.window_size + 1 if part == "training" or settings.drop_last else 2
        if len(token_ids) < needed:
            split = f" after --train_split {settings.train_split}" if is_split else ""
            smaller = " or a smaller --block_size" if needed > 2 else ""
            raise ValueError(
                f"the {part} text is too short{split}: it has {len(token_ids)} tokens and needs {needed} for one "
                f"window; give a longer text{smaller}"
            )
        windows.append(TokenWindows(token_ids, settings.window_size, settings.drop_last, separator))
    check_prompt(settings, encoding)
    digest = hashlib.sha256(b"".join(part.fingerprint() for part in windows)).hexdigest()
    bytes_per_token = mean_token_bytes(windows[1].token_ids, vocabulary) if vocabulary else None
    return Texts(encoding, vocabulary, windows[0], windows[1], digest, bytes_per_token)


def read_tokens(
    settings: TrainingSettings, encoding: "AnyTokenizer", vocabulary: Vocabulary | None = None
) -> tuple[torch.Tensor | ShardedTokens, torch.Tensor | ShardedTokens]:
    """Read the tokens to train and to validate on: of texts into memory, of shards by memory map."""
    files, validation_files = (
        find_text_files(paths or [], say_once) for paths in (settings.train_file, settings.validation_file)
    )
    refuse_unused_column([*files, *validation_files], settings.text_column)
    column = settings.text_column
    validation = to_ids(document_blocks(validation_files, column), encoding) if validation_files else None
    if settings.train_data:
        folder = Path(settings.train_data)
        training = ShardedTokens(folder, "train", vocabulary)
        sources = read_index(folder).get("sources", [])
        trained = {source["sha256"] for source in sources if "sha256" in source and "split" not in source}
        warn_of_shared(trained, validation_files, say_once)
        return training, ShardedTokens(folder, "validation", vocabulary) if validation is None else validation
    warn_of_copies(files, say_once)
    warn_of_shared(hashes_of_equal_size(files, validation_files), validation_files, say_once)
    files = files or [SAMPLE_TEXTS[settings.sample_text]()]
    warn_of_memory(files)
    if validation is not None:
        return to_ids(document_blocks(files, column), encoding), validation
    first, last = split_blocks(files, column, settings.train_split)
    return to_ids(first, encoding), to_ids(last, encoding)


def warn_of_memory(files: Sequence[Path]) -> None:
    """Say that texts may not fit into the memory that is free, before the system ends the process for it."""
    needed = MEMORY_OF_TEXT * sum(path.stat().st_size for path in files)
    if needed > (free := psutil.virtual_memory().available):
        say_once(
            f"warning: the texts may take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: make "
            "shards of them with hf-gpt-scratch prepare, which training maps (--train_data)"
        )


def to_ids(blocks: Iterable[str], encoding: "AnyTokenizer") -> torch.Tensor:
    """Encode a text in blocks as token ids, int64 [N]."""
    if isinstance(encoding, tiktoken.Encoding):
        return encode_text(blocks, encoding)
    return torch.cat([token_ids for token_ids, _ in tokenize_in_pieces(blocks, encoding)])


def end_of_text_id(encoding: "AnyTokenizer") -> int:
    """Return the id of the token between documents."""
    return encoding.eot_token if isinstance(encoding, tiktoken.Encoding) else encoding.eos_token_id


def on_cpu(settings: TrainingSettings) -> bool:
    """Return True if the run is on the CPU: several processes find each other there only if they are told so."""
    return settings.use_cpu or not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def process_state(settings: TrainingSettings) -> PartialState:
    """Join the processes as Accelerate does, which takes over what was joined before; ValueError: DeepSpeed."""
    refuse_deepspeed()
    return PartialState(cpu=on_cpu(settings), timeout=timedelta(seconds=settings.ddp_timeout))


def build_accelerator(settings: TrainingSettings) -> Accelerator:
    """Set up Accelerate; each loader batch is split between the processes, and steps do not end with an epoch.

    Raises:
        ValueError: fp16 on a CPU, which has no gradient scaling; fp8, DeepSpeed, FSDP version 1; an unknown compiler.
    """
    state = process_state(settings)
    if settings.mixed_precision is None and os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8":
        raise ValueError("the launcher's mixed precision fp8 is not supported: launch with no, bf16 or fp16")
    accelerator = Accelerator(
        cpu=on_cpu(settings),
        mixed_precision=decide_precision(settings, state),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=settings.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False, non_blocking=True),
        log_with=settings.report_to,
        project_dir=settings.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=settings.ddp_timeout))],
    )
    complete_fsdp(accelerator)
    check_compiler(accelerator)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed precision fp16 needs a GPU: use --mixed_precision no or bf16 on the CPU")
    if settings.optimizer_in_backward:
        refuse_where_impossible(accelerator)
    return accelerator


def build_model(settings: TrainingSettings, process_index: int) -> PreTrainedModel:
    """Build the model, the same on every process, and seed dropout differently on each."""
    set_seed(settings.seed)
    if settings.model_name_or_path is not None:
        model = load_base_model(settings.model_name_or_path, settings)
    else:
        model = AutoModelForCausalLM.from_config(
            settings.model_config(),
            attn_implementation=settings.attn_implementation,
            dtype=getattr(torch, settings.weights_dtype),
        )
    if settings.weight_init == "torch":
        torch.manual_seed(settings.seed)
        reset_to_torch_defaults(model)
    if process_index > 0:
        torch.manual_seed(settings.seed + process_index)
    freeze(model, settings.freeze or [])
    if settings.gradient_checkpointing:
        recompute_activations(model)
    use_fused_loss(model)
    if settings.torch_compile:
        model.compile()
    return model.train()


def model_flops(
    model: PreTrainedModel, settings: TrainingSettings, accelerator: Accelerator, speed: Speed
) -> ModelFlops:
    """Return the figures that MFU is computed from; the peak is measured on all devices at once unless it is given."""

    def measure() -> float:
        dtype = product_dtype(accelerator.mixed_precision)
        return accelerator.num_processes * measure_peak_flops(accelerator.device, dtype)

    per_token = flops_per_token(model, settings.window_size)
    if settings.peak_flops:
        flops = ModelFlops(per_token, accelerator.num_processes * settings.peak_flops)
    else:
        flops = ModelFlops(per_token, measure(), measure)
        # It was measured in a bad moment if a micro-batch is faster.
        tokens = settings.per_device_train_batch_size * accelerator.num_processes * settings.window_size
        flops.utilization(tokens / speed.micro_batch)
    return flops


def begin(run: Run) -> None:
    """Write the settings, and begin the history."""

    def write() -> None:
        run.write_settings()
        run.history.clear()

    on_main_process(run.accelerator, write)


def weights_line(settings: TrainingSettings, base_dtype: str | None) -> str:
    """Describe in which dtypes weights are stored, trained and written."""
    base = f", begin as {settings.model_name_or_path} has them in {base_dtype}" if base_dtype else ""
    result = settings.result_dtype or settings.weights_dtype
    return f"weights are trained in {settings.weights_dtype}{base}; the result will be in {result}"


def facts_of(run: Run) -> dict[str, Any]:
    """Return what a run is and runs on, as its history has it."""
    accelerator, settings, texts = run.accelerator, run.settings, run.texts
    return {
        "run_id": uuid.uuid4().hex,  # for trackers; a resumed run keeps that of its first row
        "device": describe_device(accelerator.device),
        "processes": accelerator.num_processes,
        "sharding": run.sharding,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "base_dtype": run.base.stored_dtype if run.base else None,
        "versions": key_versions(),
        "vocabulary": texts.vocabulary.facts() if texts.vocabulary else None,
        "parameters": run.bare_model.num_parameters(),
        "train_tokens": len(texts.train.token_ids),
        "validation_tokens": len(texts.validation.token_ids),
        "train_windows": len(texts.train),
        "steps_per_epoch": len(run.samplers.train),
        "steps": run.num_steps,
        "flops_per_token": run.flops.per_token,
        "peak_flops": run.flops.peak,
        "cpu_speedups": run.cpu_speedups,
        "expected_seconds": None if settings.minutes is not None else round(seconds_to_result(run), 1),
        "resumed_at_step": run.progress.global_step,
        "texts": describe_texts(settings) if accelerator.is_main_process else [],
    }


def describe(run: Run) -> None:
    """Record and print what the run is and runs on."""
    accelerator, settings, facts = run.accelerator, run.settings, facts_of(run)
    run.history.append("run", **facts, settings=settings.to_dict())
    peak = f"peak {run.flops.peak / 1e9:,.0f} GFLOP/s {'as given' if settings.peak_flops else 'measured'}"
    processes = f"{facts['processes']} ({run.sharding})" if accelerator.is_fsdp2 else facts["processes"]
    run.say(f"device {facts['device']}, processes {processes}, precision {facts['precision']}, {peak}")
    run.say(weights_line(settings, facts["base_dtype"]))
    if accelerator.device.type == "cpu":
        run.say(f"CPU speedups: {', '.join(run.cpu_speedups) or 'none'}")
    run.say(as_line(facts["versions"]))
    about = "" if settings.minutes is None else "about "
    trained = sum(weight.numel() for weight in run.bare_model.parameters() if weight.requires_grad)
    frozen = f", {trained:,} of them trained" if settings.freeze else ""
    run.say(
        f"model {facts['parameters']:,} parameters{frozen}, context {settings.max_position_embeddings} tokens; text "
        f"{facts['train_tokens']:,} training and {facts['validation_tokens']:,} validation tokens; "
        f"{facts['train_windows']:,} windows, {facts['steps_per_epoch']:,} steps an epoch, "
        f"{about}{facts['steps']:,} steps"
    )
    if line := evaluations_line(run.evaluation_plan, settings):
        run.say(line)
    if line := length_line(run):
        run.say(line)
    if accelerator.is_main_process:
        warn_early(settings)
