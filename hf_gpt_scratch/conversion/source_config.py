"""The configuration of a converted model, from the shapes of its tensors and its own settings."""

import math
from collections.abc import Mapping
from typing import Any

from hf_gpt_scratch.conversion.gpt2_sizes import GPT2_SIZES
from hf_gpt_scratch.conversion.mapping import EMBEDDING, MLP_IN, POSITIONS, Format, Layout, Shape, canonical_names
from hf_gpt_scratch.runtime import remote_code
from hf_gpt_scratch.runtime.cli import name_some


# Names in the settings of each format -> our names.
SIZE_NAMES = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
SAME_NAMES = ("initializer_range", "tie_word_embeddings", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
SETTINGS: dict[str, dict[str, str]] = {
    "openai": {"n_vocab": "vocab_size", "n_ctx": "max_position_embeddings"} | SIZE_NAMES,
    "gpt2": {
        "vocab_size": "vocab_size",
        "n_positions": "max_position_embeddings",
        "n_inner": "intermediate_size",
        "activation_function": "hidden_act",
        "resid_pdrop": "dropout",
        "layer_norm_epsilon": "layer_norm_eps",
        "qkv_bias": "qkv_bias",  # not of GPT-2: our export notes here that there were no such biases
    }
    | SIZE_NAMES
    | {name: name for name in SAME_NAMES},
    "nanogpt": {"vocab_size": "vocab_size", "block_size": "max_position_embeddings", "dropout": "dropout"}
    | SIZE_NAMES,
}
# Fixed by a format's own code, where it differs from our defaults.
FIXED: dict[str, dict[str, Any]] = {"nanogpt": {"hidden_act": "gelu"}}  # nn.GELU() is the exact form

# Settings of transformers' GPT-2 that our model cannot follow -> the only value that it can.
GPT2_ONLY = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
ACTIVATIONS = {name: name for name in ("gelu_pytorch_tanh", "gelu", "relu", "silu")}
ACTIVATIONS["gelu_new"] = "gelu_pytorch_tanh"  # one function, two kernels
SIZES = ("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "intermediate_size")
HEADS = "num_attention_heads"
# Of what a checkpoint may leave open; its sizes it has to show.
DEFAULTS = {field: value for field, value in remote_code.DEFAULTS.items() if field not in (*SIZES, HEADS)}
HEADS_OF_WIDTH = {size.hidden_size: size.num_attention_heads for size in GPT2_SIZES.values()}


def sizes_from_shapes(format_: Format, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Read the sizes of a model off its tensors; ValueError says which one is missing or not a matrix."""
    names = {short: name for name, short in canonical_names(format_, shapes).items()}
    layers = [int(match["i"]) for row in format_.rows for name in names if (match := row.match(name)) and match["i"]]
    matrices, missing = [], []
    for target in (EMBEDDING, POSITIONS, f"{MLP_IN}weight"):
        row = next(row for row in format_.rows if row.targets == (target,)).for_layer(0)
        shape = shapes[names[row.source]][-2:] if row.source in names else ()
        matrices.append(shape if row.layout is Layout.LINEAR else shape[::-1])
        if len(shape) != 2:
            missing.append(f"{row.source} is missing or not a matrix")
    if missing:
        raise ValueError(f"this looks like {format_.title}, but {name_some(missing, '; ')}")
    (vocab_size, width), (context, _), (inner, _) = matrices
    return dict(zip(SIZES, (vocab_size, context, width, 1 + max(layers), inner), strict=True))


def build_config(
    format_: Format, shapes: Mapping[str, Shape], settings: Mapping[str, Any], num_heads: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Build the configuration from the shapes and the settings of a checkpoint, and the number of heads that is given.

    Returns the fields of GPTScratchConfig, and notes of decisions that the user should know.
    ValueError names in one line all contradictions between them, each value that our model cannot follow, or that
    nothing says how many heads there are.
    """
    sizes = sizes_from_shapes(format_, shapes)
    names = SETTINGS.get(format_.name, {})
    stated = {ours: settings[theirs] for theirs, ours in names.items() if settings.get(theirs) is not None}
    problems = _wrong_values(names, stated)
    problems += [
        f"{key} is {settings[key]!r}, and our model knows only {only}"
        for key, only in (GPT2_ONLY if format_.name == "gpt2" else {}).items()
        if settings.get(key, only) != only
    ]
    problems += [
        f"{_their_name(names, key)} is {stated[key]!r} in the settings, {value} in the tensors"
        for key, value in sizes.items()
        if stated.get(key, value) != value
    ]
    if problems:
        raise ValueError(f"the settings of this checkpoint cannot be used: {name_some(problems, '; ')}")
    config = DEFAULTS | FIXED.get(format_.name, {}) | stated | sizes
    config["hidden_act"] = ACTIVATIONS[config["hidden_act"]]
    config[HEADS] = count_heads(format_, sizes["hidden_size"], stated.get(HEADS), num_heads)
    rows = [format_.find_row(name) for name in canonical_names(format_, shapes).values()]
    has_bias = any(row.targets[0].endswith("q_proj.bias") for row in rows if row and row.targets)
    config["qkv_bias"] = config["qkv_bias"] and has_bias
    notes = _set_special_tokens(config, settings, names)
    rates = {settings.get(f"{place}_pdrop", 0.1) for place in ("resid", "embd", "attn")}
    if format_.name == "gpt2" and len(rates) > 1:
        notes.append(f"GPT-2 had three dropout probabilities, ours has one: resid_pdrop, {config['dropout']}, is kept")
    return config, notes


def count_heads(format_: Format, width: int, stated: int | None, given: int | None) -> int:
    """Find the number of attention heads, which no tensor shows; what is known of it must agree."""
    released = HEADS_OF_WIDTH.get(width)
    if given is not None and stated is not None and given != stated:
        raise ValueError(f"--n_head {given} contradicts n_head={stated} of the checkpoint's own settings: drop one")
    if given is None and format_.name == "openai" and stated is not None and stated != (released or stated):
        raise ValueError(
            f"hparams.json says n_head={stated}, but OpenAI's GPT-2 of width {width} has {released} heads: "
            f"repair hparams.json, or say --n_head {stated} if that is meant"
        )
    num_heads = given or stated or released
    if num_heads is None:
        raise ValueError(f"nothing says how many attention heads this model of width {width} has: add --n_head")
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"a width of {width} cannot be cut into {num_heads} heads: correct n_head")
    return num_heads


def _their_name(names: Mapping[str, str], ours: str) -> str:
    return next((name for name, target in names.items() if target == ours), ours)


def _wrong_values(names: Mapping[str, str], stated: Mapping[str, Any]) -> list[str]:
    """Name the settings whose value our configuration would refuse; its own rules would import transformers."""

    def is_right(key: str, value: Any) -> bool:
        if key == "dropout":
            return type(value) in (int, float) and 0 <= value < 1
        if key in ("layer_norm_eps", "initializer_range"):
            return type(value) in (int, float) and 0 < value < math.inf
        if key in ("tie_word_embeddings", "use_cache", "qkv_bias"):
            return isinstance(value, bool)
        if key == "hidden_act":
            return isinstance(value, str) and value in ACTIVATIONS
        if key == "eos_token_id" and isinstance(value, list):
            return all(type(token_id) is int for token_id in value)
        return type(value) is int and value >= (0 if key.endswith("_token_id") else 1)

    return [f"{_their_name(names, key)} is {value!r}" for key, value in stated.items() if not is_right(key, value)]


def _set_special_tokens(config: dict[str, Any], settings: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Keep special tokens as they are stated, also as none; none of them may lie outside the vocabulary."""
    notes = []
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if key in names and key in settings:
            config[key] = settings[key]
        ids = config[key] if isinstance(config[key], list) else [config[key] or 0]
        if max(ids, default=0) >= config["vocab_size"]:
            notes.append(f"{key} {config[key]} is outside the vocabulary and is left unset")
            config[key] = None
    return notes
