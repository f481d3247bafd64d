"""The proof of a conversion, which trusts neither the mapping tables nor the writer.

Every written value is compared with the source: a lost key bias, for one, changes no logits, since softmax cancels it.
And the logits of the written folder, loaded in a process of its own, are compared with a forward pass in float64 that
is computed here from the source's own names and layouts. Nothing of `mapping` is used.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_gpt_scratch.conversion import verify_worker
from hf_gpt_scratch.conversion.readers.safetensors_reader import SafetensorsFiles, widen_bfloat16
from hf_gpt_scratch.conversion.writers.safetensors_writer import cast


# Half of the last kept place, relative to the power of two above the value.
HALF_PLACES = {"float32": 0.0, "float16": 2.0**-12, "bfloat16": 2.0**-9}
SMALLEST_PLACES = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 2.0**-134}  # half of a subnormal's place
COMPARED_AT_ONCE = 1 << 20  # values
# Largest difference of logits, relative to the largest logit. In float64 nothing but the order of sums differs.
TOLERANCES = {"float64": 1e-9, "float32": 2e-5}


class Names(NamedTuple):
    """The names of a format's tensors without prefixes; those of modules lack their last part, `{i}` is the layer."""

    wte: str
    wpe: str
    head: str
    ln_f: str
    ln_1: str
    ln_2: str
    qkv: tuple[str, ...]  # one module or three
    proj: str
    fc: str
    out: str
    norm_parts: tuple[str, str] = ("weight", "bias")
    linear_parts: tuple[str, str] = ("weight", "bias")
    is_transposed: bool = True  # matrices are [out, in] as in nn.Linear, and not [in, out]
    prefix: str = ""  # before all names but that of the head


GPT2_NAMES = Names(
    "wte.weight", "wpe.weight", "lm_head.weight", "ln_f.", "h.{i}.ln_1.", "h.{i}.ln_2.", ("h.{i}.attn.c_attn.",),
    "h.{i}.attn.c_proj.", "h.{i}.mlp.c_fc.", "h.{i}.mlp.c_proj.", is_transposed=False, prefix="transformer.",
)  # fmt: skip
TUTORIAL_NAMES = Names(
    "tok_emb.weight", "pos_emb.weight", "out_head.weight", "final_norm.", "trf_blocks.{i}.norm1.",
    "trf_blocks.{i}.norm2.", tuple(f"trf_blocks.{{i}}.att.W_{name}." for name in ("query", "key", "value")),
    "trf_blocks.{i}.att.out_proj.", "trf_blocks.{i}.ff.layers.0.", "trf_blocks.{i}.ff.layers.2.",
    norm_parts=("scale", "shift"),
)  # fmt: skip
NAMES = {
    "openai": Names(
        "model/wte", "model/wpe", "", "model/ln_f/", "model/h{i}/ln_1/", "model/h{i}/ln_2/",
        ("model/h{i}/attn/c_attn/",), "model/h{i}/attn/c_proj/", "model/h{i}/mlp/c_fc/", "model/h{i}/mlp/c_proj/",
        norm_parts=("g", "b"), linear_parts=("w", "b"), is_transposed=False,
    ),
    "gpt2": GPT2_NAMES,
    "nanogpt": GPT2_NAMES._replace(is_transposed=True),
    "tutorial": TUTORIAL_NAMES,
    "fused tutorial": TUTORIAL_NAMES._replace(
        qkv=("trf_blocks.{i}.att.qkv.",), proj="trf_blocks.{i}.att.proj."
    ),
    "gpt_scratch": Names(
        "embed_tokens.weight", "embed_positions.weight", "lm_head.weight", "norm.", "layers.{i}.input_layernorm.",
        "layers.{i}.post_attention_layernorm.", tuple(f"layers.{{i}}.self_attn.{letter}_proj." for letter in "qkv"),
        "layers.{i}.self_attn.o_proj.", "layers.{i}.mlp.up_proj.", "layers.{i}.mlp.down_proj.", prefix="model.",
    ),
}  # fmt: skip
NORMS, LINEARS = ("ln_1", "ln_2"), ("qkv", "proj", "fc", "out")


class SourceWeights:
    """The weights of a checkpoint, read by the names of its format, with the first `vocab_size` embeddings.

    `prepare` is applied to every array, such as rounding it to the dtype that was written.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        format_name: str,
        vocab_size: int,
        prepare: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> None:
        if format_name == "tutorial" and any(".att.qkv." in name for name in tensors):
            format_name = "fused tutorial"
        self.names = NAMES[format_name]
        self.vocab_size = vocab_size
        self._tensors = tensors
        self._prepare = prepare
        # What torch.compile, DataParallel, Lightning and the models themselves put before the names.
        self._full_names = {re.sub(r"^((_orig_mod|module|model|transformer)\.)+", "", name): name for name in tensors}

    def _get(self, name: str) -> np.ndarray:
        return self._prepare(self._tensors[self._full_names[name]])

    def embedding(self, part: str) -> np.ndarray:
        """Return "wte" [V, C], "wpe" [T, C] or "head" [V, C], which is "wte" where there is none."""
        name = getattr(self.names, part)
        if part == "head" and name not in self._full_names:
            return self.embedding("wte")
        return self._get(name) if part == "wpe" else self._get(name)[: self.vocab_size]

    def module(self, part: str, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return a LayerNorm, gain [C] and bias [C], or a linear map, matrix [in, out] and bias [out]."""
        names = getattr(self.names, part)
        kinds = self.names.linear_parts if part in LINEARS else self.names.norm_parts
        weights, biases = [], []
        for name in (names,) if isinstance(names, str) else names:
            weight, bias = (name.replace("{i}", str(index)) + kind for kind in kinds)
            values = self._get(weight)
            if part in LINEARS:
                values = values.reshape(values.shape[-2:])  # TensorFlow's convolution has a leading axis of 1
                values = values.T if self.names.is_transposed else values
            weights.append(values)
            has_bias = bias in self._full_names
            biases.append(self._get(bias) if has_bias else np.zeros(values.shape[-1], np.float32))
        return (weights[0], biases[0]) if len(weights) == 1 else (np.concatenate(weights, 1), np.concatenate(biases))


def activation(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function of the MLP in float64."""
    return {
        "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu": lambda x: 0.5 * x * (1 + np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)).astype(np.float64)),
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x / (1 + np.exp(-x)),
    }[name]


def forward(source: SourceWeights, token_ids: list[int], config: Mapping[str, Any]) -> np.ndarray:
    """Compute GPT-2 in float64: token ids [T] -> logits [T, V]."""
    act, eps = activation(config["hidden_act"]), config["layer_norm_eps"]
    heads, length = config["num_attention_heads"], len(token_ids)
    hidden = source.embedding("wte")[token_ids].astype(np.float64) + source.embedding("wpe")[:length]
    future = np.triu(np.full((length, length), -np.inf), 1)
    for index in range(config["num_hidden_layers"]):

        def linear(x: np.ndarray, part: str, index: int = index) -> np.ndarray:
            weight, bias = source.module(part, index)
            return x @ weight.astype(np.float64) + bias

        normed = layer_norm(hidden, *source.module("ln_1", index), eps)
        projected = linear(normed, "qkv")  # [T, 3C]
        query, key, value = projected.reshape(length, 3, heads, -1).transpose(1, 2, 0, 3)  # each [H, T, D]
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1]) + future
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        joined = (shares @ value).transpose(1, 0, 2).reshape(length, -1)  # [T, C]
        hidden = hidden + linear(joined, "proj")
        normed = layer_norm(hidden, *source.module("ln_2", index), eps)
        hidden = hidden + linear(act(linear(normed, "fc")), "out")
    hidden = layer_norm(hidden, *source.module("ln_f"), eps)
    head = source.embedding("head")
    return np.concatenate([hidden @ head[n : n + 8192].T.astype(np.float64) for n in range(0, len(head), 8192)], 1)


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Normalize to mean 0 and variance 1 over the last axis, then apply gain and bias."""
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps) * gain + bias


def expected_tensors(
    source: SourceWeights, config: Mapping[str, Any], layout: str = "gpt_scratch"
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, values) of what each tensor of a written folder has to be, in our layout or that of "gpt2"."""
    names = NAMES[layout]
    for part in ("wte", "wpe"):
        yield names.prefix + getattr(names, part), source.embedding(part)
    for index in range(config["num_hidden_layers"]):
        for part in (*NORMS, *LINEARS):
            targets = getattr(names, part)
            targets = (targets,) if isinstance(targets, str) else targets
            weight, bias = source.module(part, index)
            pieces = zip(np.split(weight, len(targets), -1), np.split(bias, len(targets)), strict=True)
            for target, (piece, vector) in zip(targets, pieces, strict=True):
                name = names.prefix + target.replace("{i}", str(index))
                yield f"{name}weight", piece.T if names.is_transposed else piece
                if layout == "gpt2" or part != "qkv" or config["qkv_bias"]:
                    yield f"{name}bias", vector
    for kind, values in zip(("weight", "bias"), source.module("ln_f"), strict=True):
        yield f"{names.prefix}{names.ln_f}{kind}", values
    if not config["tie_word_embeddings"]:
        yield names.head, source.embedding("head")


def round_to(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that rounds to what the written folder holds."""
    return lambda values: widen_bfloat16(cast(np.asarray(values), dtype))


def compare_values(written: SafetensorsFiles, expected: Iterable[tuple[str, np.ndarray]], dtype: str) -> float:
    """Compare every written value with its source, rounded to the dtype, and return the largest absolute difference.

    ValueError: a tensor is missing, left over, or has other values.
    """
    left, largest = set(written), 0.0
    for name, source in expected:
        if name not in left:
            raise ValueError(f"verification failed: {name} was not written")
        left.remove(name)
        values = written[name]
        if values.shape != source.shape:
            raise ValueError(f"verification failed: {name} is {list(values.shape)}, not {list(source.shape)}")
        rows = max(1, COMPARED_AT_ONCE * len(source) // max(1, source.size))
        for start in range(0, len(source), rows):
            some, exact = values[start : start + rows], source[start : start + rows].astype(np.float64)
            if not np.isfinite(some).all():
                raise ValueError(
                    f"{name} holds values that are not finite: the checkpoint is corrupt, or its run diverged"
                )
            difference = np.abs(some.astype(np.float64) - exact)
            allowed = np.maximum(np.ldexp(HALF_PLACES[dtype], np.frexp(exact)[1]), SMALLEST_PLACES[dtype])
            if not (difference <= allowed).all():
                raise ValueError(
                    f"verification failed: {name} differs from its source by up to {difference.max():.3g}"
                )
            largest = max(largest, float(difference.max(initial=0)))
    if left:
        raise ValueError(f"verification failed: {', '.join(sorted(left)[:8])} has no source")
    return largest


def ask_fresh_process(folder: Path, exchange: Path, *, trust_remote_code: bool, text: str | None) -> dict[str, Any]:
    """Load `folder` where nothing of this package can be imported; see `verify_worker`."""
    request = {"folder": str(folder.resolve()), "exchange": str(exchange), "asker": os.getpid(), "text": text}
    request |= {"trust_remote_code": trust_remote_code}
    # An empty cache, so that the code of the folder is what is run, and no network.
    env = os.environ | {"HF_HOME": str(exchange / "home"), "HF_HUB_OFFLINE": "1"}
    # Python imports from beside a program first, and what lies beside this one would stand for libraries of its names.
    program = shutil.copy(verify_worker.__file__, exchange)
    process = subprocess.run(
        [sys.executable, program], input=json.dumps(request), env=env, cwd=exchange, capture_output=True, text=True
    )
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        if process.returncode == -9:
            reason = "it was killed, perhaps for want of memory"
        raise ValueError(f"verification failed: the written folder does not load ({reason[:300]})")
    return json.loads((exchange / "result.json").read_text(encoding="utf-8"))


def compare_logits(
    source: SourceWeights, config: Mapping[str, Any], result: dict[str, Any], exchange: Path
) -> dict[str, dict[str, float]]:
    """Compare logits on every sequence that the fresh process was given; in the most exact dtype they must agree.

    Returns {dtype: {sequence: largest absolute difference}}.
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
    report: Mapping[str, Any],
    *,
    stock: bool = False,
    text: str | None = None,
) -> dict[str, Any]:
    """Prove a written folder equal to the tensors of its source, and return the figures for the report.

    `report` has format, config and dtype. With `stock` our model is in the folder in the layout of transformers'
    GPT-2, which has to load without code of its own. Logits are compared and losses computed on `text` too, which
    needs a tokenizer in the folder. ValueError says in one line what is not equal.
    """
    format_name, config, dtype = "gpt_scratch" if stock else report["format"], report["config"], report["dtype"]
    plain = SourceWeights(tensors, format_name, config["vocab_size"])
    rounded = SourceWeights(tensors, format_name, config["vocab_size"], round_to(dtype))
    expected = expected_tensors(plain, config, "gpt2" if stock else "gpt_scratch")
    value_difference = compare_values(SafetensorsFiles(weights), expected, dtype)
    # In the folder, which is not finished yet: what a kill leaves goes with it.
    with tempfile.TemporaryDirectory(dir=folder.resolve(), prefix=".verify-") as name:
        exchange = Path(name)
        result = ask_fresh_process(folder, exchange, trust_remote_code=not stock, text=text)
        logit_differences = compare_logits(rounded, config, result, exchange)
    if result["tied"] != config["tie_word_embeddings"]:
        raise ValueError(f"verification failed: the head is {'' if result['tied'] else 'not '}tied after loading")
    return {key: result[key] for key in ("class", "num_parameters", "tied", "losses")} | {
        "max_value_difference": value_difference,
        "max_logit_difference": logit_differences,
    }
