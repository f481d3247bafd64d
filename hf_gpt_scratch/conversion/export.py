"""The way back: our repository folder in the layout of transformers' stock GPT2LMHeadModel.

vLLM, llama.cpp, ONNX exporters and whatever else knows GPT-2 can use a model of ours then, without its code.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_gpt_scratch.conversion.cards import render_stock_card, render_stock_license
from hf_gpt_scratch.conversion.convert import DEFAULT_SHARD_SIZE, finish
from hf_gpt_scratch.conversion.mapping import GPT2, Layout, Row, name_some, target_shapes
from hf_gpt_scratch.conversion.readers.named_tensors import Shape, free_pages
from hf_gpt_scratch.conversion.readers.sources import OURS, Source, open_source
from hf_gpt_scratch.conversion.source_config import DEFAULTS, HEADS, SIZES
from hf_gpt_scratch.conversion.verify import read_text, verify_folder
from hf_gpt_scratch.conversion.writers.parallel_writer import PIECE_BYTES, Buffer
from hf_gpt_scratch.conversion.writers.repository_files import (
    has_gpt2_vocabulary,
    transformers_version,
    write_generation_config,
    write_json,
    write_tokenizer,
)
from hf_gpt_scratch.conversion.writers.safetensors_files import STORED, Job, SafetensorsFiles, write_model
from hf_gpt_scratch.conversion.writers.tensor_jobs import zero_values
from hf_gpt_scratch.runtime import shipped_code
from hf_gpt_scratch.runtime.files import atomic_folder


# GPT-2's activation, as one kernel or written out. The tools that know GPT-2 compute no other, whatever is asked for.
TANH_GELUS = ("gelu_pytorch_tanh", "gelu_new")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")

# Our fields -> those of GPT2Config. n_ctx and qkv_bias are not read by transformers: the first is what llama.cpp
# reads, the second tells our own converter that the biases of q, k and v were filled with zeros.
CONFIG_NAMES = {
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("n_positions", "n_ctx"),
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner",),
    "dropout": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "layer_norm_eps": ("layer_norm_epsilon",),
    "initializer_range": ("initializer_range",),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "use_cache": ("use_cache",),
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id",),
    "pad_token_id": ("pad_token_id",),
    "qkv_bias": ("qkv_bias",),
}


def check_model(source: Source) -> dict[str, Any]:
    """Read the config of our model and see that GPT-2 can be it, and that every tensor is there.

    Raises:
        ValueError: it is no language model of ours, or stock GPT-2 cannot compute what it computes; one line says why.
    """
    if source.hint != OURS:
        raise ValueError(
            f"{source.path} is no model of ours: --export-stock takes a folder that train or convert made"
        )
    config = {key: source.settings.get(key, DEFAULTS.get(key)) for key in (*CONFIG_NAMES, "hidden_act")}
    if absent := [key for key in (*SIZES, HEADS) if type(config[key]) is not int or config[key] < 1]:
        raise ValueError(f"config.json beside {source.path} lacks {', '.join(absent)}: fetch it again")
    stated = {key: source.settings.get(key, value) for key, value in shipped_code.DEFAULTS.items()}
    others = [key for key in stated.keys() - config.keys() if stated[key] != shipped_code.DEFAULTS[key]]
    if others:
        named = ", ".join(f"{key} is {stated[key]!r}" for key in sorted(others))
        raise ValueError(f"{named}, which GPT-2 does not have: this model cannot be exported as GPT-2")
    if config["hidden_act"] not in TANH_GELUS:
        raise ValueError(
            f"hidden_act is {config['hidden_act']!r}, and the tools that know GPT-2 compute the tanh form of GELU "
            "without asking: a model with another activation cannot be exported as GPT-2"
        )
    config["hidden_act"] = "gelu_pytorch_tanh"
    expected, shapes = target_shapes(config), source.tensors.shapes
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    problems += [f"{name} has no place in a GPT-2 language model" for name in shapes if name not in expected]
    problems += [
        f"{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    if problems:
        raise ValueError(f"{source.path} cannot be exported as GPT-2: {name_some(problems, '; ')}")
    return config


def fused_blocks(
    tensors: Mapping[str, np.ndarray], names: tuple[str, ...], layout: Layout, target: str, buffer: Buffer
) -> Iterator[tuple[str, np.ndarray]]:
    """Join ours to one tensor of GPT-2: vectors end to end, matrices [out, in] side by side as [in, n * out]."""
    arrays = [tensors[name] for name in names]
    if layout is Layout.LINEAR:
        arrays = [np.concatenate(arrays)] if len(arrays) > 1 else arrays
    views = arrays if layout is Layout.LINEAR else [array.T for array in arrays]
    rows = max(1, PIECE_BYTES * len(views[0]) // max(1, sum(view.nbytes for view in views)))
    for start in range(0, len(views[0]), rows):
        pieces = [view[start : start + rows] for view in views]
        yield target, np.ascontiguousarray(np.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0])
        for array in arrays:
            free_pages(array)


def stock_tensors(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> tuple[dict[str, Shape], list[Job]]:
    """The shape of every tensor of GPT2LMHeadModel, and how it is made: the table of `mapping` from right to left."""
    ours_shapes = target_shapes(config)
    shapes: dict[str, Shape] = {}
    jobs: list[Job] = []

    def add(row: Row, index: int) -> None:
        name, ours = row.for_layer(index)
        if ours[0] in ours_shapes:
            shapes[name] = row.layout.join(ours_shapes[ours[0]], len(ours))
            jobs.append(partial(fused_blocks, tensors, ours, row.layout, name))
        elif ours[0].endswith("q_proj.bias"):
            shapes[name] = (len(ours) * config["hidden_size"],)
            jobs.append(partial(zero_values, name, shapes[name]))
        # else it is the head, where that is the embedding

    rows = [row for row in GPT2.rows if row.targets]
    for index in range(config["num_hidden_layers"]):
        for row in rows:
            if "{i}" in row.source:
                add(row, index)
    for row in rows:
        if "{i}" not in row.source:
            add(row, 0)
    return shapes, jobs


def stock_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json of the stock model."""
    names = {theirs: config[ours] for ours, all_theirs in CONFIG_NAMES.items() for theirs in all_theirs}
    if names["qkv_bias"]:
        del names["qkv_bias"]
    about = {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    return names | about | {"dtype": dtype, "transformers_version": transformers_version()}


def copy_tokenizer(source_folder: Path, folder: Path, config: Mapping[str, Any], notes: list[str]) -> bool:
    """Put the model's tokenizer into the exported folder, or GPT-2's if it fits; returns whether there is one."""
    for name in TOKENIZER_FILES:
        if (source_folder / name).is_file():
            shutil.copyfile(source_folder / name, folder / name)
    if (folder / "tokenizer.json").is_file():
        return True
    if has_gpt2_vocabulary(config):
        write_tokenizer(folder, config["max_position_embeddings"])
        return True
    notes.append("the model has no tokenizer, so the exported folder has none")
    return False


def export_stock(
    path: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    verify: bool = True,
    text: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a model of ours as transformers' GPT2LMHeadModel; the folder is there in whole and proved, or not at all.

    Args:
        path: our repository folder.
        output: the folder to make.
        dtype: "float32", "bfloat16" or "float16"; by default that of the model.
        max_shard_size: bytes of the largest weight file.
        verify: prove the folder equal to the model.
        text: file to compute losses on; by default a short one of the package.
        say: called with a line about each step.

    Returns:
        The report that is stored in the folder.

    Raises:
        ValueError: GPT-2 cannot be this model, or the proof fails; one line.
        OSError: a file is missing or cannot be written.
    """
    given_text = read_text(text)
    output = Path(output)
    with atomic_folder(output) as folder:
        source = open_source(path)
        config, notes = check_model(source), []
        dtype = dtype or stored_dtype(source.tensors)
        if not config["qkv_bias"]:
            notes.append("GPT-2 always has biases of q, k and v: they are zero here, which computes the same")
        shapes, jobs = stock_tensors(source.tensors, config)
        weights = write_model(folder, shapes, jobs, dtype, max_shard_size)
        write_json(folder / "config.json", stock_config(config, dtype))
        write_generation_config(folder, config)
        has_tokenizer = copy_tokenizer(source.path.parent, folder, config, notes)
        if text is not None and not has_tokenizer:
            raise ValueError(f"--text {text} needs a tokenizer, and this model has none: leave it out")
        verification = None
        if verify:
            say("verifying: every value, and logits of the folder loaded in a fresh process")
            verification = verify_folder(
                folder,
                weights,
                source.tensors,
                OURS,
                config,
                dtype,
                stock=True,
                text=given_text if has_tokenizer else None,
            )
        report = {
            "format": "stock GPT2LMHeadModel",
            "dtype": dtype,
            "num_parameters": sum(math.prod(shape) for shape in shapes.values()),
            "tied": config["tie_word_embeddings"],
            "config": config,
            "tensors": {name: list(shape) for name, shape in shapes.items()},
            "notes": notes,
            "text": None if text is None else Path(text).name,
            "verification": verification,
        }
        license_file = source.path.parent / "LICENSE"
        licence = license_file.read_text(encoding="utf-8") if license_file.is_file() else render_stock_license()
        finish(folder, report, licence, partial(render_stock_card, output.name))
    return report


def stored_dtype(tensors: Mapping[str, np.ndarray]) -> str:
    """What all tensors are stored in, or float32 for a mixture."""
    codes = set(tensors.codes.values()) if isinstance(tensors, SafetensorsFiles) else set()
    return next((dtype for dtype, (code, _) in STORED.items() if codes == {code}), "float32")
