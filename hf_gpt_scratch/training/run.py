"""What a run consists of: text, model, optimizer and output folder, made ready by Accelerate."""

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiktoken
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast,
    set_seed,
)
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_gpt_scratch.data.sample_texts import SAMPLE_TEXTS
from hf_gpt_scratch.data.token_folder import ShardedTokens
from hf_gpt_scratch.data.tokenizer import build_tokenizer, load_encoding
from hf_gpt_scratch.data.windows import (
    StepSampler,
    TokenWindows,
    build_loader,
    draw_like_torch_loader,
    encode_text,
    epoch_order_seed,
    read_texts,
    split_text,
)
from hf_gpt_scratch.evaluation import tokenize_in_pieces
from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss
from hf_gpt_scratch.runtime.cli import say_once
from hf_gpt_scratch.runtime.environment import as_line, describe_device, describe_processor, key_versions
from hf_gpt_scratch.runtime.files import write_file
from hf_gpt_scratch.runtime.interrupts import StopSignals
from hf_gpt_scratch.training.activation_checkpointing import recompute_activations
from hf_gpt_scratch.training.backward_steps import StepsInBackward, refuse_where_impossible
from hf_gpt_scratch.training.base_model import BaseModel, load_base_model, read_base_model, with_base_model
from hf_gpt_scratch.training.checkpoints.checkpoint import (
    PREFIX,
    Progress,
    SavedState,
    dtype_of_weights,
    find_checkpoints,
    load_checkpoint,
    load_weights,
    newest_valid_checkpoint,
    read_state,
    remove_old_checkpoints,
    save_checkpoint,
)
from hf_gpt_scratch.training.checkpoints.manifest import digest, find_corruption
from hf_gpt_scratch.training.checkpoints.output_folder import FolderLock, claim_folder, clear_leftovers
from hf_gpt_scratch.training.checkpoints.resume import incompatibilities, nondeterminism_warnings, restore_draws
from hf_gpt_scratch.training.command_line import settings_json
from hf_gpt_scratch.training.cpu.allocator import keep_freed_memory_after_step, return_freed_memory
from hf_gpt_scratch.training.cpu.attention import use_blockwise_attention
from hf_gpt_scratch.training.cpu.dropout import use_fast_dropout
from hf_gpt_scratch.training.cpu.linear import is_float32_on_cpu, use_fast_linear
from hf_gpt_scratch.training.cpu.tied_embedding import join_tied_gradients
from hf_gpt_scratch.training.distributed import complete_fsdp, on_main_process, refuse_deepspeed
from hf_gpt_scratch.training.optim import build_optimizer, reset_to_torch_defaults
from hf_gpt_scratch.training.plan import check_prompt, cut_line, evaluation_batch_size, fit_to_text
from hf_gpt_scratch.training.reporting.card import describe_texts
from hf_gpt_scratch.training.reporting.history import History
from hf_gpt_scratch.training.reporting.hub_pushes import BackgroundPushes, warn_early
from hf_gpt_scratch.training.reporting.mfu import ModelFlops, flops_per_token, measure_peak_flops, product_dtype
from hf_gpt_scratch.training.settings import ARCHITECTURE, TrainingSettings
from hf_gpt_scratch.training.trial import check_attention, check_compiler, is_compiled, try_step


if TYPE_CHECKING:
    from hf_gpt_scratch.data.tokenizer import AnyTokenizer


@dataclass
class Run:
    """Everything the loop works with; `model`, `optimizer` and the loaders as Accelerate prepared them."""

    settings: TrainingSettings
    accelerator: Accelerator
    base: BaseModel | None
    encoding: "AnyTokenizer"
    model: nn.Module
    optimizer: Optimizer
    train_loader: DataLoader  # a batch is this process's share of one optimizer step
    train_eval_loader: DataLoader
    validation_loader: DataLoader
    train_sampler: StepSampler  # of all processes, before Accelerate split it
    train_eval_sampler: StepSampler
    num_steps: int
    flops: ModelFlops
    text_sha256: str  # of the token ids
    steps_in_backward: StepsInBackward | None = None
    progress: Progress = field(default_factory=Progress)
    started: float = field(default_factory=time.perf_counter)
    drawing_seconds: float = 0.5  # spent on plots, and expected of the first
    pushes: BackgroundPushes = field(default_factory=BackgroundPushes)
    signals: StopSignals = field(default_factory=StopSignals)  # those of `train`, which listens
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.output_dir / "history.jsonl", writes=self.accelerator.is_main_process)

    @property
    def output_dir(self) -> Path:
        """Folder of everything the run writes."""
        return Path(self.settings.output_dir)

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the checkpoints."""
        return self.output_dir / "checkpoints"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the result: a base model's own."""
        if self.base is not None:
            return self.base.tokenizer
        return build_tokenizer(self.settings.max_position_embeddings, self.settings.vocabulary)

    @property
    def bare_model(self) -> PreTrainedModel:
        """The model without what Accelerate and torch.compile wrapped around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def epoch(self) -> float:
        """Epochs done, such as 1.5."""
        return self.progress.global_step / len(self.train_sampler)

    @property
    def sharding(self) -> str:
        """How weights and optimizer state are spread over the processes."""
        return "FSDP2" if self.accelerator.is_fsdp2 else "none"

    def say(self, line: str) -> None:
        """Print a line, on the main process only; Accelerate's own `print` does so on every node."""
        if self.accelerator.is_main_process:
            print(line, flush=True)

    def draw_order_seed(self, epoch: int | None) -> int:
        """Seed of the window order of an epoch, or of the training batches of an evaluation (`epoch` None)."""
        if self.settings.data_order == "seeded":
            return epoch_order_seed(self.settings.seed, 0 if epoch is None else epoch)
        seed = torch.tensor(draw_like_torch_loader(shuffle=True), device=self.accelerator.device)
        # Each process draws from its own generator: the main one's order holds for all.
        return int(broadcast(seed) if self.accelerator.num_processes > 1 else seed)

    def save(self) -> Path:
        """Write a checkpoint of this moment, then delete old ones; to be called by all processes."""
        self.progress.history_bytes, self.progress.history_sha256 = self.history.mark()
        optimizer = self.optimizer.optimizer
        path = save_checkpoint(self.checkpoint_dir, self.accelerator, self.bare_model, optimizer, self.saved_state())
        keep, best_step = self.settings.save_total_limit, self.progress.best_step
        on_main_process(self.accelerator, lambda: remove_old_checkpoints(path, keep, best_step))
        return path

    def saved_state(self) -> SavedState:
        """What a checkpoint says of this run and moment, besides weights and optimizer."""
        scaler = self.accelerator.scaler
        return SavedState(
            progress=self.progress,
            settings=self.settings.to_dict(),
            num_processes=self.accelerator.num_processes,
            grad_scaler=scaler.state_dict() if scaler is not None else None,
            environment={
                **key_versions(),
                "device": describe_device(self.accelerator.device),
                **({"processor": describe_processor()} if self.accelerator.device.type == "cpu" else {}),
                "sharding": self.sharding,
            },
            text_sha256=self.text_sha256,
            model_sha256=model_sha256(self.bare_model.config),
        )

    def note_validation_loss(self, loss: float) -> bool:
        """Remember this step if it is the best so far and the settings ask for it; returns whether it is."""
        progress = self.progress
        best = progress.best_validation_loss
        is_best = self.settings.load_best_model_at_end and (best is None or loss < best)
        if is_best:
            progress.best_step, progress.best_validation_loss = progress.global_step, loss
        return is_best

    def load_best_weights(self) -> None:
        """Take the weights of the best evaluation, if the settings ask for it; to be called by all processes."""
        step = self.progress.best_step
        if step is None or step == self.progress.global_step:
            return
        path = self.checkpoint_dir / f"{PREFIX}{step:08d}"
        fault = on_main_process(self.accelerator, lambda: find_corruption(path))
        if fault is not None:
            self.say(f"warning: {path}, the best checkpoint, cannot be used ({fault}): keeping the last weights")
            return
        load_weights(path, self.bare_model)
        self.progress.whole_losses = None
        self.say(f"took the weights of {path}: validation loss {self.progress.best_validation_loss:.3f}")


def build_windows(settings: TrainingSettings, encoding: "AnyTokenizer") -> tuple[TokenWindows, TokenWindows]:
    """Read, split and cut the tokens: training and validation windows.

    Raises:
        ValueError, OSError: a file cannot be used, or a part is too short; the line names it.
    """
    separator = end_of_text_id(encoding) if settings.separate_documents else None
    windows = []
    for part, token_ids in zip(("training", "validation"), read_tokens(settings, encoding), strict=True):
        # Training wants one full window; a short validation text is scored as it is.
        needed = settings.window_size + 1 if part == "training" or settings.drop_last else 2
        if len(token_ids) < needed:
            raise ValueError(
                f"the {part} text is too short: it has {len(token_ids)} tokens and needs {needed} for one window; "
                "give a longer text or a smaller --block_size"
            )
        windows.append(TokenWindows(token_ids, settings.window_size, settings.drop_last, separator))
    return windows[0], windows[1]


def read_tokens(
    settings: TrainingSettings, encoding: "AnyTokenizer"
) -> tuple[torch.Tensor | ShardedTokens, torch.Tensor | ShardedTokens]:
    """The tokens to train and to validate on: texts in memory, shards by memory map."""

    def read(paths: Sequence[str | Path]) -> str:
        return read_texts(paths, settings.text_column, say_once)

    validation = to_ids(read(settings.validation_file), encoding) if settings.validation_file else None
    if settings.train_data:
        folder = Path(settings.train_data)
        training = ShardedTokens(folder, "train")
        return training, ShardedTokens(folder, "validation") if validation is None else validation
    text = read(settings.train_file or [SAMPLE_TEXTS[settings.sample_text]()])
    if validation is not None:
        return to_ids(text, encoding), validation
    train_text, validation_text = split_text(text, settings.train_split)
    return to_ids(train_text, encoding), to_ids(validation_text, encoding)


def to_ids(text: str, encoding: "AnyTokenizer") -> torch.Tensor:
    """Turn a text into token ids, int64 [N], also by the tokenizer of a base model, which takes it in pieces."""
    if isinstance(encoding, tiktoken.Encoding):
        return encode_text(text, encoding)
    return torch.cat([token_ids for token_ids, _ in tokenize_in_pieces([text], encoding)])


def end_of_text_id(encoding: "AnyTokenizer") -> int:
    """Return the id of the token between documents."""
    return encoding.eot_token if isinstance(encoding, tiktoken.Encoding) else encoding.eos_token_id


def build_accelerator(settings: TrainingSettings) -> Accelerator:
    """Set up Accelerate; each loader batch is split between the processes, and steps do not end with an epoch.

    Raises:
        ValueError: fp16 on a CPU, which has no gradient scaling; fp8, DeepSpeed, FSDP version 1; an unknown compiler.
    """
    refuse_deepspeed()
    if settings.mixed_precision is None and os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8":
        raise ValueError("the launcher's mixed precision fp8 is not supported: launch with no, bf16 or fp16")
    accelerator = Accelerator(
        # Said explicitly, because several processes on a CPU find each other only then.
        cpu=settings.use_cpu or not torch.accelerator.is_available(),
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=settings.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False),
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
        model = load_base_model(settings)
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
    if settings.gradient_checkpointing:
        recompute_activations(model)
    use_fused_loss(model)
    if settings.torch_compile:
        model.compile()
    return model.train()


def save_on_cpu(
    model: PreTrainedModel, optimizer: Optimizer, settings: TrainingSettings, accelerator: Accelerator
) -> None:
    """Have a model trained in less time and memory, by what is of use on a CPU; elsewhere nothing is done."""
    if accelerator.device.type != "cpu":
        return
    if settings.optimizer_in_backward:
        return_freed_memory()
    else:
        keep_freed_memory_after_step(optimizer)
    compiles = is_compiled(settings, accelerator)
    use_fast_linear(model, accelerator, compiles)
    if settings.fast_dropout and not compiles:
        use_fast_dropout(model)
    is_sdpa = settings.attn_implementation == "sdpa" and is_float32_on_cpu(model, accelerator, compiles)
    if is_sdpa and settings.fast_dropout and settings.dropout > 0:
        use_blockwise_attention(model)
    join_tied_gradients(model, accelerator, compiles or settings.optimizer_in_backward)


def model_flops(model: PreTrainedModel, settings: TrainingSettings, accelerator: Accelerator) -> ModelFlops:
    """What MFU is computed from; the peak is measured on all devices at once, unless the settings know it."""
    peak = settings.peak_flops or measure_peak_flops(accelerator.device, product_dtype(accelerator.mixed_precision))
    return ModelFlops(flops_per_token(model, settings.window_size), peak * accelerator.num_processes)


def set_up(settings: TrainingSettings, lock: FolderLock) -> Run:
    """Build a run from its settings, fresh or resumed, up to the moment before the first step.

    Args:
        settings: what to train.
        lock: of the output folder; taken here, given back by the caller.

    Raises:
        ValueError, OSError: settings, text, folder or checkpoint do not allow it; nothing was written.
    """
    check_attention(settings)
    accelerator = build_accelerator(settings)
    on_main_process(accelerator, lambda: claim_folder(settings, lock, make=False))
    base = read_base_model(settings)
    settings = with_base_model(settings, base)
    encoding = base.encoding if base is not None else load_encoding(settings.vocabulary)
    train_windows, validation_windows = build_windows(settings, encoding)

    check_prompt(settings, encoding)
    num_windows, num_processes = len(train_windows), accelerator.num_processes
    asked = settings
    settings, _, num_steps = fit_to_text(settings, num_windows, num_processes)
    accelerator.gradient_accumulation_steps = settings.gradient_accumulation_steps

    micro_batch_size = settings.per_device_train_batch_size * num_processes
    batch_size = micro_batch_size * settings.gradient_accumulation_steps
    train_loader = build_loader(train_windows, batch_size, settings.drop_last)
    train_eval_loader = build_loader(train_windows, micro_batch_size, settings.drop_last)
    validation_batch_size = evaluation_batch_size(settings, len(validation_windows), num_processes)
    validation_loader = build_loader(validation_windows, validation_batch_size)
    samplers = train_loader.batch_sampler, train_eval_loader.batch_sampler

    model = build_model(settings, accelerator.process_index)
    optimizer = build_optimizer(model, settings)
    save_on_cpu(model, optimizer, settings, accelerator)
    run = Run(
        settings,
        accelerator,
        base,
        encoding,
        *accelerator.prepare(model, optimizer, train_loader, train_eval_loader, validation_loader),
        *samplers,
        num_steps=num_steps,
        flops=model_flops(model, settings, accelerator),
        text_sha256=text_sha256(train_windows, validation_windows),
    )
    try_step(run.model, settings, accelerator)
    if settings.optimizer_in_backward:
        run.steps_in_backward = StepsInBackward(run.bare_model, run.optimizer.optimizer)
    on_main_process(accelerator, lambda: claim_folder(settings, lock, make=True))
    on_main_process(accelerator, lambda: clear_leftovers(run.output_dir))
    checkpoint = find_resumable(run) if settings.resume else None
    if checkpoint is None:
        begin(run)
    else:
        resume(run, checkpoint)
    if line := cut_line(asked, settings, num_windows):
        run.say(f"warning: {line}")
    describe(run, train_windows, validation_windows)
    return run


def text_sha256(*parts: TokenWindows) -> str:
    """SHA-256 over the token ids of all parts, to know on resume that they are the same."""
    return hashlib.sha256(b"".join(part.fingerprint() for part in parts)).hexdigest()


def model_sha256(config: PretrainedConfig) -> str:
    """SHA-256 of all that decides what the weights of a model compute."""
    names = (*ARCHITECTURE, "vocab_size", "intermediate_size", "layer_norm_eps")
    return digest({name: getattr(config, name) for name in names})


def begin(run: Run) -> None:
    """Write down the settings, and begin the history."""

    def write() -> None:
        write_file(run.output_dir / "settings.json", settings_json(run.settings))
        run.history.clear()

    on_main_process(run.accelerator, write)


def find_resumable(run: Run) -> Path | None:
    """Choose the checkpoint to go on from, the same for all processes; damaged ones are named.

    Returns:
        None where the run was stopped before its first checkpoint: it goes on from the first step.

    Raises:
        FileNotFoundError: all checkpoints are damaged, or they were deleted.
    """

    def look() -> tuple[Path | None, list[str]]:
        interval = run.settings.save_steps or run.num_steps
        if not find_checkpoints(run.checkpoint_dir) and run.history.count("step") <= interval:
            return None, []
        return newest_valid_checkpoint(run.checkpoint_dir)

    path, warnings = on_main_process(run.accelerator, look)
    for warning in warnings:
        run.say(f"warning: {warning}")
    if path is None:
        run.say(f"{run.checkpoint_dir} holds no checkpoint yet: starting from the first step")
    return path


def resume(run: Run, path: Path) -> None:
    """Put the run back to a valid checkpoint.

    Raises:
        ValueError: settings, text, processes or random state would make it another run.
    """
    saved, now = read_state(path), run.saved_state()
    differences = [
        *run.settings.differences(saved.settings),
        *incompatibilities(saved, now, run.train_sampler.num_windows),
    ]
    if differences:
        raise ValueError(
            f"cannot resume {path}: {'; '.join(differences)}; resume with the old values (they are in "
            f"{run.output_dir / 'settings.json'}, for --config) or start anew in another --output_dir"
        )
    load_checkpoint(path, run.accelerator, run.bare_model, run.optimizer.optimizer)
    stored = dtype_of_weights(path)
    if stored != run.bare_model.dtype:
        run.say(
            f"warning: {path} has weights in {stored}, as an older version trained them: they go on in "
            f"{run.bare_model.dtype}"
        )
    run.progress = saved.progress
    on_main_process(run.accelerator, lambda: restore_records(run))
    run.say(f"resumed from {path}")
    for notice in nondeterminism_warnings(saved, now):
        run.say(f"warning: {notice}")
    restore_draws(path, saved, run.accelerator)


def weights_line(settings: TrainingSettings, base_dtype: str | None) -> str:
    """Say in which dtype weights are stored, trained and written."""
    base = f", begin as {settings.model_name_or_path} has them in {base_dtype}" if base_dtype else ""
    result = settings.result_dtype or settings.weights_dtype
    return f"weights are trained in {settings.weights_dtype}{base}; the result will be in {result}"


def restore_records(run: Run) -> None:
    """Put history and settings.json back to the moment of a checkpoint; where they are missing, write them anew."""
    progress, settings_file = run.progress, run.output_dir / "settings.json"
    run.history.go_back(progress.history_bytes, progress.history_sha256, progress.global_step)
    if not settings_file.is_file():
        write_file(settings_file, settings_json(run.settings))


def describe(run: Run, train_windows: TokenWindows, validation_windows: TokenWindows) -> None:
    """Say what the run is and on what it runs, and write the same into the history."""
    accelerator, settings = run.accelerator, run.settings
    facts: dict[str, Any] = {
        "run_id": uuid.uuid4().hex,  # for trackers; a resumed run goes by that of its first row
        "device": describe_device(accelerator.device),
        "processes": accelerator.num_processes,
        "sharding": run.sharding,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "base_dtype": run.base.stored_dtype if run.base else None,
        "versions": key_versions(),
        "parameters": run.bare_model.num_parameters(),
        "train_tokens": len(train_windows.token_ids),
        "validation_tokens": len(validation_windows.token_ids),
        "train_windows": len(train_windows),
        "steps_per_epoch": len(run.train_sampler),
        "steps": run.num_steps,
        "flops_per_token": run.flops.per_token,
        "peak_flops": run.flops.peak,
        "resumed_at_step": run.progress.global_step,
        "texts": describe_texts(settings) if accelerator.is_main_process else [],
    }
    run.history.append("run", **facts, settings=settings.to_dict())
    peak = f"peak {run.flops.peak / 1e9:,.0f} GFLOP/s {'as given' if settings.peak_flops else 'measured'}"
    processes = f"{facts['processes']} ({run.sharding})" if accelerator.is_fsdp2 else facts["processes"]
    run.say(f"device {facts['device']}, processes {processes}, precision {facts['precision']}, {peak}")
    run.say(weights_line(settings, facts["base_dtype"]))
    run.say(as_line(facts["versions"]))
    run.say(
        f"model {facts['parameters']:,} parameters, context {settings.max_position_embeddings} tokens; text "
        f"{facts['train_tokens']:,} training and {facts['validation_tokens']:,} validation tokens; "
        f"{facts['train_windows']:,} windows, {facts['steps_per_epoch']:,} steps an epoch, {facts['steps']:,} steps"
    )
    if accelerator.is_main_process:
        warn_early(settings)
