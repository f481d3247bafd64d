"""Export of our repository folder to transformers' stock GPT2LMHeadModel, which vLLM, llama.cpp and others can use."""

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_gpt_scratch.conversion.cards import UNKNOWN_LICENSE, render_stock_card
from hf_gpt_scratch.conversion.convert import OutputOptions, write_proved
from hf_gpt_scratch.conversion.mapping import GPT2, Layout, Row, target_shapes
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors, Shape
from hf_gpt_scratch.conversion.readers.safetensors_reader import STORED, SafetensorsFiles
from hf_gpt_scratch.conversion.readers.sources import OURS, Source, open_source
from hf_gpt_scratch.conversion.source_config import DEFAULTS, HEADS, SETTINGS, SIZES
from hf_gpt_scratch.conversion.writers.repository_files import transformers_version, write_generation_config
from hf_gpt_scratch.conversion.writers.tensor_blocks import row_blocks
from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary import END_OF_TEXT_ID, named_vocabulary
from hf_gpt_scratch.runtime import remote_code
from hf_gpt_scratch.runtime.cli import name_some
from hf_gpt_scratch.runtime.files import atomic_folder, write_json


# GPT-2's activation, as one kernel or written out. The tools that know GPT-2 compute no other, whatever is asked for.
TANH_GELUS = ("gelu_pytorch_tanh", "gelu_new")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")

# Fields of GPT2Config beside those that the converter reads. n_ctx is what llama.cpp reads.
MORE_FIELDS = {"n_ctx": "max_position_embeddings", "embd_pdrop": "dropout", "attn_pdrop": "dropout"}


def check_model(source: Source) -> dict[str, Any]:
    """Read the config of our model and check that GPT-2 can express it and that every tensor is there.

    Raises:
        ValueError: it is not our language model, or stock GPT-2 cannot compute what it computes; one line says why.
    """
    if source.hint != OURS:
        raise ValueError(
            f"{source.path} is not a gpt_scratch model: --export_stock takes a folder that train or convert made"
        )
    config: dict[str, Any] = {key: source.settings.get(key, DEFAULTS.get(key)) for key in SETTINGS["gpt2"].values()}
    if absent := [key for key in (*SIZES, HEADS) if type(config[key]) is not int or config[key] < 1]:
        raise ValueError(f"config.json beside {source.path} lacks {', '.join(absent)}: fetch it again")
    stated = {key: source.settings.get(key, value) for key, value in remote_code.DEFAULTS.items()}
    others = [key for key in stated.keys() - config.keys() if stated[key] != remote_code.DEFAULTS[key]]
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


def stock_shapes(config: Mapping[str, Any]) -> tuple[dict[str, Shape], dict[str, Row]]:
    """Return the shape of every tensor of GPT2LMHeadModel, and the row of `mapping`, of its layer, that it is from."""
    layers = range(config["num_hidden_layers"])
    rows = [row.for_layer(index) for index in layers for row in GPT2.rows if "{i}" in row.source]
    rows += [row for row in GPT2.rows if "{i}" not in row.source]
    our_shapes = target_shapes({**config, "qkv_bias": True})  # GPT-2 always has them
    # A tied head is not among ours.
    used = {row.source: row for row in rows if row.targets and row.targets[0] in our_shapes}
    shapes = {name: row.layout.join(our_shapes[row.targets[0]], len(row.targets)) for name, row in used.items()}
    return shapes, used


def stock_blocks(
    tensors: NamedTensors, shapes: Mapping[str, Shape], rows: Mapping[str, Row]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, next values) of every tensor of GPT2LMHeadModel: the table of `mapping` from right to left."""
    for name, row in rows.items():
        arrays = [tensors[target] for target in row.targets if target in tensors]
        if not arrays:
            yield name, np.zeros(shapes[name], np.float32)
        else:
            joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            # Matrices [n * out, in] become [in, n * out].
            yield from ((name, block) for block in row_blocks(joined if row.layout is Layout.LINEAR else joined.T))


def stock_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return config.json of the stock model."""
    fields = {theirs: config[ours] for theirs, ours in (SETTINGS["gpt2"] | MORE_FIELDS).items()}
    if fields["qkv_bias"]:  # not a field of GPT2Config: False tells our converter that these biases are filled zeros
        del fields["qkv_bias"]
    about = {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    return fields | about | {"dtype": dtype, "transformers_version": transformers_version()}


def copy_tokenizer(source_folder: Path, folder: Path, config: Mapping[str, Any], notes: list[str]) -> None:
    """Put the model's tokenizer into the exported folder, or GPT-2's if every id of it has an embedding."""
    for name in TOKENIZER_FILES:
        if (source_folder / name).is_file():
            shutil.copyfile(source_folder / name, folder / name)
    if not (folder / "tokenizer.json").is_file():
        if config["vocab_size"] > END_OF_TEXT_ID:
            write_tokenizer(folder, named_vocabulary("gpt2"), config["max_position_embeddings"])
        else:
            notes.append("the model has no tokenizer, so the exported folder has none")


def export_stock(path: str | Path, output: str | Path, **options: Any) -> dict[str, Any]:
    """Write our model as transformers' GPT2LMHeadModel, atomically and verified.

    `path` is our repository folder, `options` are fields of `OutputOptions`; returns the report, as
    `convert_checkpoint` does, and raises the same errors, ValueError also where GPT-2 cannot be this model.
    """
    how = OutputOptions(**options)
    with atomic_folder(Path(output)) as folder:
        return write_stock(open_source(path), folder, Path(output).name, how)


def write_stock(source: Source, folder: Path, name: str, how: OutputOptions, **generation: Any) -> dict[str, Any]:
    """Write what `export_stock` makes into an empty folder; `name` is for its card, `generation` for its defaults."""
    config, notes = check_model(source), []
    dtype = how.dtype or stored_dtype(source.tensors)
    if not config["qkv_bias"]:
        notes.append("GPT-2 always has biases of q, k and v: they are zero here, which computes the same")
    if config["layer_norm_eps"] != DEFAULTS["layer_norm_eps"]:
        lost = f"{config['layer_norm_eps']:g} to {DEFAULTS['layer_norm_eps']:g}"
        notes.append(f"CTranslate2 4.8 changes layer_norm_epsilon from {lost} without a word: other logits")
    write_json(folder / "config.json", stock_config(config, dtype))
    write_generation_config(folder, config, **generation)
    copy_tokenizer(source.path.parent, folder, config, notes)
    license_file = source.path.parent / "LICENSE"
    shapes, rows = stock_shapes(config)
    return write_proved(
        folder, source, shapes, stock_blocks(source.tensors, shapes, rows),
        {"format": "stock GPT2LMHeadModel", "dtype": dtype, "config": config, "notes": notes},
        how,
        license_text=license_file.read_text(encoding="utf-8") if license_file.is_file() else UNKNOWN_LICENSE,
        render_card=partial(render_stock_card, name), stock=True,
    )  # fmt: skip


def stored_dtype(tensors: NamedTensors) -> str:
    """Return the dtype that all tensors are stored in, float32 for a mixture."""
    codes = set(tensors.codes.values()) if isinstance(tensors, SafetensorsFiles) else set()
    return next((dtype for dtype, (code, _) in STORED.items() if codes == {code}), "float32")
