"""Choose the settings that `--minutes` leaves open, for the text, this machine and the minutes.

The rules are fitted to recorded sweeps: scripts/benchmarks/results/README.md, "What the minutes choose".
"""

import math
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from hf_gpt_scratch.data.sample_texts import SAMPLE_TEXTS
from hf_gpt_scratch.data.token_folder import ShardedTokens
from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary import NAMES
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from hf_gpt_scratch.data.vocabulary_training import TextSample, bytes_per_token, train_vocabulary
from hf_gpt_scratch.data.windows import find_text_files, read_texts, split_text
from hf_gpt_scratch.runtime.files import atomic_folder, write_file
from hf_gpt_scratch.training.checkpoints.checkpoint import find_checkpoints, read_state
from hf_gpt_scratch.training.distributed import on_main_process
from hf_gpt_scratch.training.memory_estimate import estimate_memory
from hf_gpt_scratch.training.reporting.mfu import flops_per_token, measure_peak_flops
from hf_gpt_scratch.training.settings import HEAD_WIDTH, TrainingSettings, fitting_heads


VOCABULARY_FOLDER = "vocabulary"  # in the output folder
SAMPLE_CHARS = 2**24  # of the training text, from its start, that a vocabulary is trained on at most
MEASURED_CHARS = 2**17  # of it that tell how long a token is
BYTES_OF_PREPARED_TOKEN = 4  # about, of GPT-2's tokens
MEMORY_SHARE = 0.5  # of the free memory that a step is estimated to take at most: libraries and caches come on top

# The unit of computing of the rules: one core for a minute, at its speed in a large product.
UNIT_FLOPS = 1e13
# Exponents of DeepSeek LLM (arXiv:2401.02954, section 3.1), by which batch and rate follow the computing.
BATCH_EXPONENT, RATE_EXPONENT = 0.3271, -0.1250
UNIT_TOKENS, UNIT_RATE = 768, 0.02  # of a step
UNIT_CONTEXT, CONTEXT_EXPONENT, MOST_CONTEXT = 64, 0.25, 1024
# 20 tokens for each parameter of the layers (arXiv:2203.15556), 6 FLOPs for each of both.
USED_SHARE, TOKENS_OF_PARAMETER = 0.25, 20  # the part of the FLOPs that goes into the model
PARAMETERS_OF_BYTE = 10  # of text at most: nanoGPT's recipe of a card has 10.6 million for the 1.1 MB of its text
WIDTH_OF_LAYER, LEAST_LAYERS, MOST_WIDTH = 64, 2, 1600
LEAST_WIDTH_OF_FULL_HEADS = LEAST_WIDTH_IN_BF16 = 256
# Tokens of a vocabulary: of a text of 1 MB, and of a head with at most so many parameters for one of the layers.
MEGABYTE_TOKENS, TOKENS_EXPONENT, HEAD_SHARE, LEAST_TOKENS, MOST_TOKENS = 5400, 0.45, 6, 512, 32768
DROPOUT_OF_DOUBLING, PASSES_WITHOUT, MOST_DROPOUT = 0.1, 3.0, 0.6
PASSES_TO_THE_BEST = 16  # from which on the validation loss may rise before the end


@dataclass(frozen=True)
class Means:
    """The text and the computing that a run has."""

    num_bytes: int  # of the training text
    sample: str  # its beginning; of prepared tokens, nothing
    flops: float  # that its devices would do in its minutes, at their speed in a large product


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
        if begun := recorded(settings, folder):
            return begun
        means = measure_means(settings, state)
        chosen = replace(settings, choose=None, **by_rules(settings, means, state.num_processes, folder))
        passes = passes_over_text(chosen, means)
        by_passes: dict[str, Any] = {
            "dropout": dropout_for(passes),
            "load_best_model_at_end": passes >= PASSES_TO_THE_BEST,
        }
        chosen = replace(chosen, **{name: by_passes[name] for name in by_passes if name in (settings.choose or [])})
        chosen = fit_to_memory(chosen, settings, state.device)
        print("\n".join(describe(chosen, means, passes, state.num_processes)), flush=True)
        return {name: getattr(chosen, name) for name in settings.choose or []}

    return replace(settings, choose=None, **on_main_process(state, choose))


def recorded(settings: TrainingSettings, folder: Path) -> dict[str, Any] | None:
    """Return what a run that is resumed began with; None if no checkpoint says it."""
    for path in find_checkpoints(Path(settings.output_dir) / "checkpoints") if settings.resume else ():
        with suppress(ValueError, OSError):  # a damaged one, which is named when the run is resumed
            saved = read_state(path).settings
            begun = {name: saved[name] for name in settings.choose or [] if name in saved}
            if begun.get("vocabulary", NAMES[0]) not in NAMES and folder.is_dir():
                begun["vocabulary"] = str(folder)  # the output folder may have been moved
            return begun
    return None


def measure_means(settings: TrainingSettings, state: PartialState) -> Means:
    """Measure the speed of the devices, and read the training text."""
    # The precision in which a card is fast; the sweeps were on a CPU, in float32.
    dtype = torch.bfloat16 if state.device.type == "cuda" else torch.float32
    speed = settings.peak_flops or measure_peak_flops(state.device, dtype)
    flops = 60 * (settings.minutes or 0.0) * speed * state.num_processes
    if settings.train_data is not None:
        return Means(BYTES_OF_PREPARED_TOKEN * len(ShardedTokens(Path(settings.train_data), "train")), "", flops)
    files = find_text_files(settings.train_file or [SAMPLE_TEXTS[settings.sample_text]()])
    text = read_texts(files, settings.text_column)
    if settings.validation_file is None:
        text, _ = split_text(text, settings.train_split)
    return Means(len(text.encode("utf-8")), text[:SAMPLE_CHARS], flops)


def by_rules(settings: TrainingSettings, means: Means, num_processes: int, folder: Path) -> dict[str, Any]:
    """Return a value for each setting that is left open, and make the vocabulary if it is one of them."""
    open_settings = settings.choose or []
    scale = means.flops / UNIT_FLOPS
    width = settings.hidden_size or 1
    layers = None if "num_hidden_layers" in open_settings else settings.num_hidden_layers
    if "hidden_size" in open_settings:
        heads = 1 if "num_attention_heads" in open_settings else settings.num_attention_heads or 1
        layers, width = model_shape(means, layers, heads)
    context = settings.context
    if "max_position_embeddings" in open_settings:
        context = max(context_length(scale), settings.block_size or 0)
    tokens_a_step = UNIT_TOKENS * max(1.0, scale) ** BATCH_EXPONENT
    windows = math.ceil(tokens_a_step / (settings.block_size or context) / num_processes)
    layers = layers or layers_for(width)
    vocabulary = settings.vocabulary
    if "vocabulary" in open_settings:
        vocabulary = make_vocabulary(means, vocabulary_size(means, layers, width), folder)
    values = {
        "vocabulary": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads_for(width),
        "max_position_embeddings": context,
        "per_device_train_batch_size": windows,
        "gradient_accumulation_steps": 1,
        "optim": "muon",
        "learning_rate": float(f"{UNIT_RATE * max(1.0, scale) ** RATE_EXPONENT:.2g}"),
        "min_learning_rate": 0.0,
        "mixed_precision": "auto" if width >= LEAST_WIDTH_IN_BF16 else "no",
    }
    return {name: value for name, value in values.items() if name in open_settings}


def model_shape(means: Means, layers: int | None = None, heads: int = 1) -> tuple[int, int]:
    """Return layers and width of the model that learns most of the text in so many FLOPs.

    Args:
        means: of the run.
        layers: of the model; None: more for a wider one.
        heads: of a layer, by which the width can be divided.
    """
    by_flops = math.sqrt(USED_SHARE * means.flops / (6 * TOKENS_OF_PARAMETER))
    parameters = max(1.0, min(by_flops, PARAMETERS_OF_BYTE * means.num_bytes))
    widths = [width for width in range(1, MOST_WIDTH + 1) if width % math.lcm(width_of_head(width), heads) == 0]
    shapes = [(layers or layers_for(width), width) for width in widths or [heads]]
    return min(shapes, key=lambda shape: abs(math.log(12 * shape[0] * shape[1] ** 2 / parameters)))


def layers_for(width: int) -> int:
    """Return the layers of a model of a width."""
    return max(LEAST_LAYERS, round(width / WIDTH_OF_LAYER))


def width_of_head(width: int) -> int:
    """Return the width of a head: 32 in a small model, else 64 as in GPT-2."""
    return HEAD_WIDTH if width >= LEAST_WIDTH_OF_FULL_HEADS else HEAD_WIDTH // 2


def heads_for(width: int) -> int:
    """Return the heads of a layer that has a width."""
    of_head = width_of_head(width)
    return width // of_head if width % of_head == 0 else fitting_heads(width)


def context_length(scale: float) -> int:
    """Return the context of a model that is trained with this much computing, in `UNIT_FLOPS`: a power of two."""
    return min(MOST_CONTEXT, UNIT_CONTEXT * 2 ** max(0, round(CONTEXT_EXPONENT * math.log2(scale))))


def make_vocabulary(means: Means, num_tokens: int, folder: Path) -> str:
    """Train a vocabulary on the text, write it, and return the folder."""
    with tempfile.TemporaryDirectory() as name:
        sample = Path(name, "sample.txt")
        write_file(sample, means.sample)
        vocabulary = train_vocabulary(TextSample([sample]), num_tokens)
    with atomic_folder(folder, replace=True) as made:
        write_tokenizer(made, vocabulary)
    return str(folder)


def vocabulary_size(means: Means, layers: int, width: int) -> int:
    """Return the tokens of a vocabulary that suits the length of the text and the model: a power of two."""
    by_text = MEGABYTE_TOKENS * (means.num_bytes / 1e6) ** TOKENS_EXPONENT
    by_model = HEAD_SHARE * 12 * layers * width
    return min(MOST_TOKENS, max(LEAST_TOKENS, 2 ** int(math.log2(max(1.0, min(by_text, by_model))))))


def passes_over_text(chosen: TrainingSettings, means: Means) -> float:
    """Estimate how often the training sees the text."""
    with FakeTensorMode():  # shapes and no content
        model = AutoModelForCausalLM.from_config(chosen.model_config())
    tokens = USED_SHARE * means.flops / flops_per_token(model, chosen.window_size)
    measured = means.sample[:MEASURED_CHARS]
    vocabulary = load_vocabulary(chosen.vocabulary or "gpt2")
    a_token = bytes_per_token([measured], vocabulary) if measured else BYTES_OF_PREPARED_TOKEN
    return tokens * a_token / max(1, means.num_bytes)


def dropout_for(passes: float) -> float:
    """Return the dropout of a run that sees its text so often: more with each doubling, in steps of 0.05."""
    doublings = math.log2(max(1.0, passes / PASSES_WITHOUT))
    return round(20 * min(MOST_DROPOUT, DROPOUT_OF_DOUBLING * doublings)) / 20


def fit_to_memory(chosen: TrainingSettings, asked: TrainingSettings, device: torch.device) -> TrainingSettings:
    """Split a step into more micro-batches until one fits the free memory, where the batch is left open."""
    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    while (
        chosen.per_device_train_batch_size > 1
        and "per_device_train_batch_size" in (asked.choose or [])
        and estimate_memory(chosen.model_config(), chosen, device, "no") > MEMORY_SHARE * free
    ):
        chosen = replace(
            chosen,
            per_device_train_batch_size=math.ceil(chosen.per_device_train_batch_size / 2),
            gradient_accumulation_steps=(
                2 * chosen.gradient_accumulation_steps
                if "gradient_accumulation_steps" in (asked.choose or [])
                else chosen.gradient_accumulation_steps
            ),
        )
    return chosen


def describe(chosen: TrainingSettings, means: Means, passes: float, num_processes: int) -> list[str]:
    """Describe in three lines what was chosen, and why."""
    vocabulary = load_vocabulary(chosen.vocabulary or "gpt2")
    windows = chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps * num_processes
    return [
        f"--minutes {chosen.minutes:g} chooses by {means.num_bytes / 1e6:.3g} MB of text and the {means.flops:.2g} "
        "FLOPs that products would do here in that time; a flag of yours replaces its part:",
        f"  {vocabulary.size:,} tokens ({vocabulary.name}), as suits the length of the text; "
        f"{chosen.num_hidden_layers} layers, {chosen.hidden_size} wide, context {chosen.max_position_embeddings}, the "
        "size that learns most in these FLOPs",
        f"  {windows} windows a step, {chosen.optim} at {chosen.learning_rate:g} falling to "
        f"{chosen.min_learning_rate:g}, precision {chosen.mixed_precision}; for about {passes:.2g} passes over the "
        f"text dropout {chosen.dropout:g}{' and the best checkpoint' * chosen.load_best_model_at_end}",
    ]
