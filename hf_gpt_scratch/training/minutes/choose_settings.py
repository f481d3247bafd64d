"""Choose the settings that `--minutes` leaves open, for the text, this machine and the minutes; say what and why."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState

from hf_gpt_scratch.data.sample_texts import SAMPLE_TEXTS
from hf_gpt_scratch.data.token_folder import ShardedTokens
from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary import NAMES
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from hf_gpt_scratch.data.vocabulary_training import TextSample, bytes_per_token, train_vocabulary
from hf_gpt_scratch.data.windows import find_text_files, split_blocks
from hf_gpt_scratch.runtime.files import atomic_folder, write_file
from hf_gpt_scratch.training.checkpoints.checkpoint import recorded_state
from hf_gpt_scratch.training.distributed import on_main_process
from hf_gpt_scratch.training.memory_estimate import estimate_memory, sketch
from hf_gpt_scratch.training.minutes.hyperparameter_rules import (
    LEAST_WIDTH_IN_BF16,
    MOMENTUM,
    PASSES_TO_THE_BEST,
    USED_SHARE,
    Budget,
    context_length,
    dropout_for,
    heads_for,
    layers_for,
    model_shape,
    peak_rate,
    vocabulary_size,
    windows_a_step,
)
from hf_gpt_scratch.training.peak_flops import measure_peak_flops
from hf_gpt_scratch.training.reporting.mfu import flops_per_token
from hf_gpt_scratch.training.settings import TrainingSettings


SAMPLE_CHARS = 2**24  # of the training text, from its start, that a vocabulary is trained on at most
MEASURED_CHARS = 2**17  # of it that tell how long a token is
BYTES_OF_PREPARED_TOKEN = 4  # about, of GPT-2's tokens
MEMORY_SHARE = 0.5  # of the free memory that a step is estimated to take at most: libraries and caches come on top


def choose_settings(settings: TrainingSettings, state: PartialState, folder: Path) -> TrainingSettings:
    """Choose the settings that are left open, say what and why; of a resumed run, take those that it began with.

    Collective: call on every process.

    Args:
        settings: of the run, with `choose`.
        state: of the processes.
        folder: to make for a vocabulary of the text's own.

    Raises:
        ValueError, OSError: the text cannot be read, or the folder not be written.
    """

    def choose() -> dict[str, Any]:
        if begun := begun_with(settings, folder):
            return begun
        budget = measure_budget(settings, state)
        chosen = replace(settings, choose=None, **apply_rules(settings, budget, state.num_processes, folder))
        passes = passes_over_text(chosen, budget)
        by_passes: dict[str, Any] = {
            "dropout": dropout_for(passes),
            "load_best_model_at_end": passes >= PASSES_TO_THE_BEST,
        }
        chosen = replace(chosen, **{name: by_passes[name] for name in by_passes if name in (settings.choose or [])})
        chosen = fit_to_memory(chosen, settings.choose or [], state.device)
        print("\n".join(describe(chosen, budget, passes, state.num_processes)), flush=True)
        return {name: getattr(chosen, name) for name in settings.choose or []}

    return replace(settings, choose=None, **on_main_process(state, choose))


def begun_with(settings: TrainingSettings, folder: Path) -> dict[str, Any]:
    """Return what a run that is resumed began with; nothing if no checkpoint says it."""
    state = recorded_state(settings)
    saved = state.settings if state else {}
    begun = {name: saved[name] for name in settings.choose or [] if name in saved}
    if begun.get("vocabulary", NAMES[0]) not in NAMES and folder.is_dir():
        begun["vocabulary"] = str(folder)  # the output folder may have been moved
    return begun


def measure_budget(settings: TrainingSettings, state: PartialState) -> Budget:
    """Measure the speed of the devices, and read the training text."""
    # The precision in which a card is fast; the sweeps were on a CPU, in float32.
    dtype = torch.bfloat16 if state.device.type == "cuda" else torch.float32
    speed = settings.peak_flops or measure_peak_flops(state.device, dtype)
    if settings.train_data is not None:
        tokens = ShardedTokens(Path(settings.train_data), "train", load_vocabulary(settings.vocabulary or "gpt2"))
        num_bytes, sample = BYTES_OF_PREPARED_TOKEN * len(tokens), ""
    else:
        files = find_text_files(settings.train_file or [SAMPLE_TEXTS[settings.sample_text]()])
        fraction = settings.train_split if settings.validation_file is None else 1.0
        num_bytes, sample = 0, ""
        for block in split_blocks(files, settings.text_column, fraction)[0]:
            num_bytes += len(block.encode("utf-8"))
            sample += block[: SAMPLE_CHARS - len(sample)]
    if not settings.peak_flops:  # the first moment may have been a bad one
        speed = max(speed, measure_peak_flops(state.device, dtype))
    return Budget(num_bytes, sample, 60 * (settings.minutes or 0.0) * speed * state.num_processes)


def apply_rules(settings: TrainingSettings, budget: Budget, num_processes: int, folder: Path) -> dict[str, Any]:
    """Return a value for each setting that is left open, and make the vocabulary if it is one of them."""
    open_settings = settings.choose or []
    width = settings.hidden_size or 1
    layers = None if "num_hidden_layers" in open_settings else settings.num_hidden_layers
    if "hidden_size" in open_settings:
        heads = 1 if "num_attention_heads" in open_settings else settings.num_attention_heads or 1
        layers, width = model_shape(budget, layers, heads)
    layers = layers or layers_for(width)
    context = settings.context
    if "max_position_embeddings" in open_settings:
        context = max(context_length(budget.scale), settings.block_size or 0)
    windows, micro_batches = micro_batch(
        settings, windows_a_step(budget.scale, settings.block_size or context) / num_processes
    )
    values = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads_for(width),
        "max_position_embeddings": context,
        "per_device_train_batch_size": windows,
        "gradient_accumulation_steps": micro_batches,
        "optim": "muon",
        "muon_momentum": MOMENTUM,
        "learning_rate": peak_rate(budget.scale),
        "min_learning_rate": 0.0,
        "lr_scheduler_type": "linear",
        "mixed_precision": "auto" if width >= LEAST_WIDTH_IN_BF16 else "no",
    }
    if "vocabulary" in open_settings:
        values["vocabulary"] = make_vocabulary(budget, vocabulary_size(budget, layers, width), folder)
    return {name: value for name, value in values.items() if name in open_settings}


def micro_batch(settings: TrainingSettings, windows: float) -> tuple[int, int]:
    """Return the windows of a micro-batch and the micro-batches of a step with so many windows on each process."""
    open_settings = settings.choose or []
    if "per_device_train_batch_size" in open_settings:
        micro_batches = 1 if "gradient_accumulation_steps" in open_settings else settings.gradient_accumulation_steps
        return math.ceil(windows / micro_batches), micro_batches
    return settings.per_device_train_batch_size, math.ceil(windows / settings.per_device_train_batch_size)


def make_vocabulary(budget: Budget, num_tokens: int, folder: Path) -> str:
    """Train a vocabulary on the text, write it, and return the folder."""
    with tempfile.TemporaryDirectory() as name:
        sample = Path(name, "sample.txt")
        write_file(sample, budget.sample)
        vocabulary = train_vocabulary(TextSample([sample]), num_tokens)
    with atomic_folder(folder, replace=True) as made:
        write_tokenizer(made, vocabulary)
    return str(folder)


def passes_over_text(chosen: TrainingSettings, budget: Budget) -> float:
    """Estimate how often the training sees the text."""
    tokens = USED_SHARE * budget.flops / flops_per_token(sketch(chosen.model_config()), chosen.window_size)
    measured = budget.sample[:MEASURED_CHARS]
    vocabulary = load_vocabulary(chosen.vocabulary or "gpt2")
    a_token = bytes_per_token([measured], vocabulary) if measured else BYTES_OF_PREPARED_TOKEN
    return tokens * a_token / max(1, budget.num_bytes)


def fit_to_memory(chosen: TrainingSettings, open_settings: Sequence[str], device: torch.device) -> TrainingSettings:
    """Halve the micro-batch until a step fits the free memory, for twice as many of them; what is given stays."""
    if "per_device_train_batch_size" not in open_settings:
        return chosen
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    windows, micro_batches = chosen.per_device_train_batch_size, chosen.gradient_accumulation_steps
    # In float32, which takes the most.
    while windows > 1 and estimate_memory(chosen.model_config(), chosen, device, "no") > MEMORY_SHARE * free:
        windows = math.ceil(windows / 2)
        micro_batches *= 2 if "gradient_accumulation_steps" in open_settings else 1
        chosen = replace(chosen, per_device_train_batch_size=windows, gradient_accumulation_steps=micro_batches)
    return chosen


def describe(chosen: TrainingSettings, budget: Budget, passes: float, num_processes: int) -> list[str]:
    """Describe in three lines what was chosen, and why."""
    vocabulary = load_vocabulary(chosen.vocabulary or "gpt2")
    windows = chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps * num_processes
    return [
        f"--minutes {chosen.minutes:g} chooses by {budget.num_bytes / 1e6:.3g} MB of text and the {budget.flops:.2g} "
        "FLOPs that products would do here in that time; a flag of yours replaces its part:",
        f"  {vocabulary.size:,} tokens ({vocabulary.name}), as suits the length of the text; "
        f"{chosen.num_hidden_layers} layers, {chosen.hidden_size} wide, context {chosen.max_position_embeddings}, the "
        "size that learns most in these FLOPs",
        f"  {windows} windows a step, {chosen.optim} at {chosen.learning_rate:g} falling to "
        f"{chosen.min_learning_rate:g} ({chosen.lr_scheduler_type}), precision {chosen.mixed_precision}; for about "
        f"{passes:.2g} passes over the text dropout {chosen.dropout:g}"
        f"{' and the best checkpoint' * chosen.load_best_model_at_end}",
    ]
