"""The proof of a conversion, which trusts neither the tables nor the writer.

Two things are compared. Every written value is held against the source: a lost key bias, for one, changes no logits,
since softmax cancels it. And the logits of the written folder, loaded in a process of its own, are held against a
forward pass in float64 that is computed here from the source's own names and layouts. Nothing of `mapping` is used.

Source of the forward pass: src/model.py of openai/gpt-2.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from hf_gpt_scratch.conversion import reload
from hf_gpt_scratch.conversion.writers.safetensors_files import SafetensorsFiles, cast


Weights = dict[str, np.ndarray]  # matrices are [in, out] here, as GPT-2's code multiplies

# Half of the last kept place, relative to the power of two above the value.
HALF_PLACES = {"float32": 0.0, "float16": 2.0**-12, "bfloat16": 2.0**-9}
SMALLEST_PLACES = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 2.0**-134}  # half of a subnormal's place
COMPARED_AT_ONCE = 1 << 20  # values
# Largest difference of logits, relative to the largest logit. In float64 nothing but the order of sums differs.
TOLERANCES = {"float64": 1e-9, "float32": 2e-5}


class SourceWeights:
    """The weights of a checkpoint, read by its own names, as one layer after the other of plain matrices.

    Args:
        tensors: the open checkpoint.
        format_name: "openai", "gpt2", "nanogpt", "tutorial", or "gpt_scratch" for ours.
        vocab_size: rows of the embedding that are wanted.
        prepare: what is done to every array, such as rounding it to the dtype that was written.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        format_name: str,
        vocab_size: int,
        prepare: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> None:
        self.tensors = tensors
        self.format_name = format_name
        self.vocab_size = vocab_size
        self.prepare = prepare
        # What torch.compile, DataParallel and Lightning put before the names, which ours have themselves.
        self.names = {re.sub(r"^((_orig_mod|module|model)\.)+", "", name): name for name in tensors}
        if format_name in ("gpt2", "nanogpt"):
            self.names = {short.removeprefix("transformer."): name for short, name in self.names.items()}

    def get(self, short: str) -> np.ndarray:
        """One array by its name without prefixes."""
        return self.prepare(self.tensors[self.names[short]])

    def vector(self, short: str, size: int) -> np.ndarray:
        """One bias, or zeros where the model has none."""
        return self.get(short) if short in self.names else np.zeros(size, np.float32)

    def outside(self) -> Weights:
        """Embeddings wte [V, C] and wpe, final LayerNorm ln_f, and the head [V, C]."""
        embedding, positions, norm, head = {
            "openai": ("model/wte", "model/wpe", ("model/ln_f/g", "model/ln_f/b"), ""),
            "gpt2": ("wte.weight", "wpe.weight", ("ln_f.weight", "ln_f.bias"), "lm_head.weight"),
            "nanogpt": ("wte.weight", "wpe.weight", ("ln_f.weight", "ln_f.bias"), "lm_head.weight"),
            "tutorial": (
                "tok_emb.weight", "pos_emb.weight", ("final_norm.scale", "final_norm.shift"), "out_head.weight"
            ),
            "gpt_scratch": (
                "embed_tokens.weight", "embed_positions.weight", ("norm.weight", "norm.bias"), "lm_head.weight"
            ),
        }[self.format_name]  # fmt: skip
        wte = self.get(embedding)[: self.vocab_size]
        return {
            "wte": wte,
            "wpe": self.get(positions),
            "ln_f.g": self.get(norm[0]),
            "ln_f.b": self.vector(norm[1], wte.shape[1]),
            "head": self.get(head)[: self.vocab_size] if head in self.names else wte,
        }

    def layer(self, index: int) -> Weights:
        """One layer: ln_1, qkv [C, 3C], proj [C, C], ln_2, fc [C, I], out [I, C], each with .g or .w, and .b."""
        return {
            "openai": self.openai_layer,
            "gpt2": self.gpt2_layer,
            "nanogpt": self.nanogpt_layer,
            "tutorial": self.tutorial_layer,
            "gpt_scratch": self.our_layer,
        }[self.format_name](index)

    def openai_layer(self, index: int) -> Weights:
        """TensorFlow's one-dimensional convolution of width 1 has a leading axis of 1."""
        names = {
            "ln_1": "ln_1", "qkv": "attn/c_attn", "proj": "attn/c_proj", "ln_2": "ln_2", "fc": "mlp/c_fc",
            "out": "mlp/c_proj",
        }  # fmt: skip
        weights = {}
        for short, name in names.items():
            for kind in "gb" if short.startswith("ln") else "wb":
                values = self.get(f"model/h{index}/{name}/{kind}")
                weights[f"{short}.{kind}"] = values[0] if kind == "w" else values
        return weights

    def gpt2_layer(self, index: int) -> Weights:
        """Conv1D of transformers multiplies from the right, as here."""
        return self.named_as_gpt2(index, lambda matrix: matrix)

    def nanogpt_layer(self, index: int) -> Weights:
        """nn.Linear multiplies with the transposed matrix."""
        return self.named_as_gpt2(index, np.transpose)

    def named_as_gpt2(self, index: int, turn: Callable[[np.ndarray], np.ndarray]) -> Weights:
        """Names of transformers' GPT-2; biases may be missing."""
        weights = {}
        for short, name in (
            ("qkv", "attn.c_attn"),
            ("proj", "attn.c_proj"),
            ("fc", "mlp.c_fc"),
            ("out", "mlp.c_proj"),
        ):
            weights[f"{short}.w"] = turn(self.get(f"h.{index}.{name}.weight"))
            weights[f"{short}.b"] = self.vector(f"h.{index}.{name}.bias", weights[f"{short}.w"].shape[1])
        for short in ("ln_1", "ln_2"):
            weights[f"{short}.g"] = self.get(f"h.{index}.{short}.weight")
            weights[f"{short}.b"] = self.vector(f"h.{index}.{short}.bias", len(weights[f"{short}.g"]))
        return weights

    def tutorial_layer(self, index: int) -> Weights:
        """Separate projections or one for all three, LayerNorm with scale and shift."""
        block = f"trf_blocks.{index}."
        is_fused = f"{block}att.qkv.weight" in self.names
        qkv = [f"{block}att.{name}" for name in (["qkv"] if is_fused else ["W_query", "W_key", "W_value"])]
        proj = f"{block}att.proj" if f"{block}att.proj.weight" in self.names else f"{block}att.out_proj"
        norms = {
            f"{ours}.{kind}": self.get(f"{block}{theirs}.{name}")
            for ours, theirs in (("ln_1", "norm1"), ("ln_2", "norm2"))
            for kind, name in (("g", "scale"), ("b", "shift"))
        }
        return norms | self.linears(qkv, proj, f"{block}ff.layers.0", f"{block}ff.layers.2")

    def our_layer(self, index: int) -> Weights:
        """Our own names, for the way back."""
        layer = f"layers.{index}."
        qkv = [f"{layer}self_attn.{letter}_proj" for letter in "qkv"]
        norms = {
            f"{ours}.{kind}": self.get(f"{layer}{theirs}.{name}")
            for ours, theirs in (("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm"))
            for kind, name in (("g", "weight"), ("b", "bias"))
        }
        return norms | self.linears(qkv, f"{layer}self_attn.o_proj", f"{layer}mlp.up_proj", f"{layer}mlp.down_proj")

    def linears(self, qkv: list[str], proj: str, fc: str, out: str) -> Weights:
        """nn.Linear modules; the three of attention side by side, or one that is that already."""
        matrices = [self.get(f"{name}.weight").T for name in qkv]
        biases = [self.vector(f"{name}.bias", matrix.shape[1]) for name, matrix in zip(qkv, matrices, strict=True)]
        weights = {"qkv.w": np.concatenate(matrices, axis=1), "qkv.b": np.concatenate(biases)}
        for short, name in (("proj", proj), ("fc", fc), ("out", out)):
            weights[f"{short}.w"] = self.get(f"{name}.weight").T
            weights[f"{short}.b"] = self.get(f"{name}.bias")
        return weights


def activation(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of the MLP in float64."""
    erf = np.frompyfunc(math.erf, 1, 1)
    return {
        "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)).astype(np.float64)),
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x / (1 + np.exp(-x)),
    }[name]


def forward(source: SourceWeights, token_ids: list[int], config: Mapping[str, Any]) -> np.ndarray:
    """GPT-2 in float64: token ids [T] -> logits [T, V]."""
    act = activation(config["hidden_act"])
    heads, length = config["num_attention_heads"], len(token_ids)
    outside = source.outside()
    hidden = outside["wte"][token_ids].astype(np.float64) + outside["wpe"][:length]
    future = np.triu(np.full((length, length), -np.inf), 1)
    for index in range(config["num_hidden_layers"]):
        layer = {name: values.astype(np.float64) for name, values in source.layer(index).items()}
        normed = layer_norm(hidden, layer["ln_1.g"], layer["ln_1.b"], config["layer_norm_eps"])
        projected = normed @ layer["qkv.w"] + layer["qkv.b"]  # [T, 3C]
        query, key, value = projected.reshape(length, 3, heads, -1).transpose(1, 2, 0, 3)  # each [H, T, D]
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1]) + future
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        joined = (shares @ value).transpose(1, 0, 2).reshape(length, -1)  # [T, C]
        hidden = hidden + joined @ layer["proj.w"] + layer["proj.b"]
        normed = layer_norm(hidden, layer["ln_2.g"], layer["ln_2.b"], config["layer_norm_eps"])
        hidden = hidden + act(normed @ layer["fc.w"] + layer["fc.b"]) @ layer["out.w"] + layer["out.b"]
    hidden = layer_norm(hidden, outside["ln_f.g"], outside["ln_f.b"], config["layer_norm_eps"])
    head = outside["head"]
    return np.concatenate([hidden @ head[n : n + 8192].T.astype(np.float64) for n in range(0, len(head), 8192)], 1)


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Mean 0 and variance 1 over the last axis, then gain and bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * gain + bias


def expected_ours(source: SourceWeights, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """What each tensor of our layout has to be."""
    outside = source.outside()
    yield "model.embed_tokens.weight", outside["wte"]
    yield "model.embed_positions.weight", outside["wpe"]
    for index in range(config["num_hidden_layers"]):
        weights, prefix = source.layer(index), f"model.layers.{index}."
        for theirs, ours in (("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm")):
            yield f"{prefix}{ours}.weight", weights[f"{theirs}.g"]
            yield f"{prefix}{ours}.bias", weights[f"{theirs}.b"]
        for place, letter in enumerate("qkv"):
            columns = slice(place * config["hidden_size"], (place + 1) * config["hidden_size"])
            yield f"{prefix}self_attn.{letter}_proj.weight", weights["qkv.w"][:, columns].T
            if config["qkv_bias"]:
                yield f"{prefix}self_attn.{letter}_proj.bias", weights["qkv.b"][columns]
        for theirs, ours in (("proj", "self_attn.o_proj"), ("fc", "mlp.up_proj"), ("out", "mlp.down_proj")):
            yield f"{prefix}{ours}.weight", weights[f"{theirs}.w"].T
            yield f"{prefix}{ours}.bias", weights[f"{theirs}.b"]
    yield "model.norm.weight", outside["ln_f.g"]
    yield "model.norm.bias", outside["ln_f.b"]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", outside["head"]


def expected_stock(source: SourceWeights, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """What each tensor of transformers' GPT-2 has to be."""
    outside = source.outside()
    yield "transformer.wte.weight", outside["wte"]
    yield "transformer.wpe.weight", outside["wpe"]
    names = (("qkv", "attn.c_attn"), ("proj", "attn.c_proj"), ("fc", "mlp.c_fc"), ("out", "mlp.c_proj"))
    for index in range(config["num_hidden_layers"]):
        weights, prefix = source.layer(index), f"transformer.h.{index}."
        for short, name in (*names, ("ln_1", "ln_1"), ("ln_2", "ln_2")):
            yield f"{prefix}{name}.weight", weights[f"{short}.{'g' if short.startswith('ln') else 'w'}"]
            yield f"{prefix}{name}.bias", weights[f"{short}.b"]
    yield "transformer.ln_f.weight", outside["ln_f.g"]
    yield "transformer.ln_f.bias", outside["ln_f.b"]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", outside["head"]


def decode(stored: np.ndarray) -> np.ndarray:
    """Stored values as numbers; uint16 are the upper halves of float32."""
    return (stored.astype("<u4") << np.uint32(16)).view("<f4") if stored.dtype == np.uint16 else stored


def round_to(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """Rounding to what the written folder holds."""
    return lambda values: decode(cast(np.asarray(values), dtype))


def compare_values(written: SafetensorsFiles, expected: Iterator[tuple[str, np.ndarray]], dtype: str) -> float:
    """Compare every written value with its source; in float32 they are the same bits, else rounded to nearest.

    Returns:
        The largest difference, absolute.

    Raises:
        ValueError: a tensor is missing, left over, or has other values.
    """
    left, largest = set(written), 0.0
    for name, source in expected:
        if name not in left:
            raise ValueError(f"verification failed: {name} was not written")
        left.remove(name)
        values = decode(written.stored(name))
        if values.shape != source.shape:
            raise ValueError(f"verification failed: {name} is {list(values.shape)}, not {list(source.shape)}")
        rows = max(1, COMPARED_AT_ONCE * len(source) // max(1, source.size))
        for start in range(0, len(source), rows):
            piece = slice(start, start + rows)
            largest = max(largest, compare_piece(name, values[piece], source[piece], dtype))
    if left:
        raise ValueError(f"verification failed: {', '.join(sorted(left)[:8])} has no source")
    return largest


def compare_piece(name: str, values: np.ndarray, source: np.ndarray, dtype: str) -> float:
    """Compare some rows; returns the largest difference."""
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are not finite: the checkpoint is damaged, or its run diverged")
    exact = source.astype(np.float64)
    difference = np.abs(values.astype(np.float64) - exact)
    _, exponents = np.frexp(exact)
    allowed = np.maximum(np.ldexp(HALF_PLACES[dtype], exponents), SMALLEST_PLACES[dtype])
    if not (difference <= allowed).all():
        raise ValueError(f"verification failed: {name} differs from its source by up to {difference.max():.3g}")
    return float(difference.max(initial=0))


def read_text(path: str | Path | None) -> str:
    """The text to compute losses on, or the packaged one.

    Raises:
        ValueError: it is empty or not UTF-8.
        OSError: it cannot be read.
    """
    path = Path(path or str(files("hf_gpt_scratch") / "assets" / "sample_text.txt"))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: convert it first") from None
    if not text.strip():
        raise ValueError(
            f"{path} {'holds nothing but white space' if text else 'is empty'}: give a file with text in it"
        )
    return text


def ask_fresh_process(folder: Path, exchange: Path, *, trust_remote_code: bool, text: str | None) -> dict[str, Any]:
    """Load `folder` where nothing of this package can be imported; see `reload`.

    Raises:
        ValueError: it does not load.
    """
    request = {
        "folder": str(folder.resolve()),
        "exchange": str(exchange),
        "trust_remote_code": trust_remote_code,
        "text": text,
        "asker": os.getpid(),
    }
    # An empty cache, so that the code of the folder is what is run, and no network.
    environment = os.environ | {"HF_HOME": str(exchange / "home"), "HF_HUB_OFFLINE": "1"}
    # Python imports from beside a program first, and what lies beside this one would stand for libraries of its names.
    program = shutil.copy(reload.__file__, exchange)
    process = subprocess.run(
        [sys.executable, program],
        input=json.dumps(request),
        env=environment,
        cwd=exchange,
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        killed = "it was killed, perhaps for want of memory"
        reason = (
            killed if process.returncode == -9 else (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        )
        raise ValueError(f"verification failed: the written folder does not load ({reason[:300]})")
    return json.loads((exchange / "result.json").read_text(encoding="utf-8"))


def compare_logits(
    source: SourceWeights, config: Mapping[str, Any], result: dict[str, Any], exchange: Path
) -> dict[str, dict[str, float]]:
    """Compare logits on every sequence that the fresh process was given.

    Returns:
        {dtype: {sequence: largest absolute difference}}.

    Raises:
        ValueError: the most exact of the two dtypes differs by more than rounding.
    """
    differences: dict[str, dict[str, float]] = {dtype: {} for dtype in result["dtypes"]}
    judge = result["dtypes"][-1]
    for name, token_ids in result["sequences"].items():
        reference = forward(source, token_ids, config)
        for dtype in result["dtypes"]:
            logits = np.load(exchange / f"{name}-{dtype}.npy").astype(np.float64)
            differences[dtype][name] = float(np.abs(logits - reference).max())
        limit = TOLERANCES[judge] * max(1.0, float(np.abs(reference).max()))
        # Written so that NaN fails.
        if not differences[judge][name] <= limit:
            raise ValueError(
                f"verification failed: logits differ by {differences[judge][name]:.3g} where {limit:.1g} is allowed "
                f"({judge}, {name} sequence)"
            )
    return differences


def verify_folder(
    folder: Path,
    weights: list[Path],
    tensors: Mapping[str, np.ndarray],
    format_name: str,
    config: Mapping[str, Any],
    dtype: str,
    *,
    stock: bool = False,
    text: str | None = None,
) -> dict[str, Any]:
    """Prove a written folder equal to its source.

    Args:
        folder: the repository folder.
        weights: its weight files.
        tensors: the open source.
        format_name: its format.
        config: fields of GPTScratchConfig.
        dtype: what the folder was written in.
        stock: whether it is in the layout of transformers' GPT-2 and has to load without its own code.
        text: a text to compare logits and compute losses on; needs a tokenizer in the folder.

    Returns:
        The figures for the report.

    Raises:
        ValueError: it is not equal; one line says where.
    """
    vocab_size = config["vocab_size"]
    plain = SourceWeights(tensors, format_name, vocab_size)
    expected = (expected_stock if stock else expected_ours)(plain, config)
    value_difference = compare_values(SafetensorsFiles(weights), expected, dtype)
    rounded = SourceWeights(tensors, format_name, vocab_size, round_to(dtype))
    # In the folder, which is not finished yet: what a kill leaves goes with it.
    with tempfile.TemporaryDirectory(dir=folder.resolve(), prefix=".verify-") as name:
        exchange = Path(name)
        result = ask_fresh_process(folder, exchange, trust_remote_code=not stock, text=text)
        logit_differences = compare_logits(rounded, config, result, exchange)
    if result["tied"] != config["tie_word_embeddings"]:
        raise ValueError(f"verification failed: the head is {'' if result['tied'] else 'not '}tied after loading")
    return {
        "class": result["class"],
        "num_parameters": result["num_parameters"],
        "tied": result["tied"],
        "max_value_difference": value_difference,
        "max_logit_difference": logit_differences,
        "losses": result["losses"],
    }
