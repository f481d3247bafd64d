"""The proof of the ONNX files: logits against the forward pass of `verify`, weights of 8 bits against their values.

The logits are computed in ONNX Runtime in two ways: of a whole text, and as a program that writes does it, with a
cache, one token at a time, in a batch with a text that is shorter and so padded in front.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from tokenizers import Tokenizer

from hf_gpt_scratch.conversion.readers.sources import OURS
from hf_gpt_scratch.conversion.verify import TOLERANCES, SourceWeights, forward, round_to
from hf_gpt_scratch.conversion.verify_worker import WINDOW, compared_sequences


PADDING = 2  # tokens before the shorter text
SCORED = 2048  # tokens, for the loss on a text
Cache = dict[str, np.ndarray]


class OnnxModel:
    """A file of `export_onnx` in ONNX Runtime on a CPU."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def empty_cache(self, batch_size: int) -> Cache:
        """Return a cache without a token."""
        past = {value.name: value.shape for value in self.session.get_inputs() if value.name.startswith("past")}
        return {name: np.zeros((batch_size, shape[1], 0, shape[3]), np.float32) for name, shape in past.items()}

    def __call__(
        self, token_ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Cache, keep: int = 0
    ) -> tuple[np.ndarray, Cache]:
        """Compute the logits of the last `keep` tokens, 0 for all, and the longer cache; see `onnx_graph`."""
        given = {"input_ids": token_ids, "attention_mask": mask, "position_ids": positions}
        logits, *present = self.session.run(
            self.outputs, {**given, "num_logits_to_keep": np.array(keep, np.int64), **cache}
        )
        names = (name.replace("present", "past_key_values") for name in self.outputs[1:])
        return logits, dict(zip(names, present, strict=True))

    def text_logits(self, token_ids: list[int]) -> np.ndarray:
        """Compute the logits of a text, [T] -> [T, V]."""
        ids = np.array([token_ids], np.int64)
        return self(ids, np.ones_like(ids), np.arange(ids.shape[1])[None], self.empty_cache(1))[0][0]

    def step_by_step(self, token_ids: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (place, logits [V] after that token), twice for nearly each token of the second half of a text.

        The second time is in a row of the batch that is padded in front.
        """
        length, padding = len(token_ids), min(PADDING, len(token_ids) - 1)
        ids = np.array([token_ids, [0] * padding + token_ids[: length - padding]], np.int64)
        mask = np.ones_like(ids)
        mask[1, :padding] = 0
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
        cache, start = self.empty_cache(2), 0
        for end in range((length + 1) // 2, length + 1):
            new = slice(start, end)
            logits, cache = self(ids[:, new], mask[:, :end], positions[:, new], cache, keep=1)
            yield end - 1, logits[0, 0]
            if end > padding:
                yield end - 1 - padding, logits[1, 0]
            start = end


def verify_files(
    float_file: Path, quantized_file: Path,
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], dtype: str, text: str,
) -> dict[str, float]:  # fmt: skip
    """Prove the files in `onnx/` of a folder, and return the figures for the report.

    `tensors` are those of our model, which the folder has in `dtype`. The losses on the text, in nats per token, need
    a tokenizer in the folder.

    Raises:
        ValueError: they are not what the model is; one line says where.
    """
    exact, quantized = OnnxModel(float_file), OnnxModel(quantized_file)
    context, vocab_size = config["max_position_embeddings"], config["vocab_size"]
    tokenizer, ids = float_file.parents[1] / "tokenizer.json", []
    if tokenizer.is_file():
        ids = Tokenizer.from_file(str(tokenizer)).encode(text).ids[:SCORED]
    sequences = compared_sequences(context, vocab_size, ids)
    source = SourceWeights(tensors, OURS, vocab_size, round_to(dtype))
    differences, with_8_bits = [], []
    for name, sequence in sequences.items():
        reference = forward(source, sequence, config)
        differences.append(compare_logits(exact, name, sequence, reference))
        with_8_bits.append(np.abs(quantized.text_logits(sequence) - reference).max())
    found = {
        "largest_difference_of_a_logit": max(differences),
        "largest_difference_of_a_logit_with_8_bits": float(np.max(with_8_bits)),  # NaN stays NaN
        "largest_step_of_an_8_bit_weight": compare_weights(float_file, quantized_file),
    }
    window = min(WINDOW, context)
    if len(ids) > window:
        found["loss_on_the_text"] = loss(exact, ids, window)
        found["loss_on_the_text_with_8_bits"] = loss(quantized, ids, window)
    return found


def compare_logits(model: OnnxModel, name: str, token_ids: list[int], reference: np.ndarray) -> float:
    """Compare logits [T, V] with those of the file, computed in both ways; return the largest difference."""
    limit = TOLERANCES["float32"] * max(1.0, float(np.abs(reference).max()))
    differences = [np.abs(model.text_logits(token_ids) - reference).max()]
    differences += [np.abs(logits - reference[place]).max() for place, logits in model.step_by_step(token_ids)]
    largest = float(np.max(differences))
    if not largest <= limit:  # written so that NaN fails
        raise ValueError(
            f"verification failed: logits of model.onnx differ by {largest:.3g} where {limit:.1g} is allowed "
            f"({name} sequence)"
        )
    return largest


def compare_weights(float_file: Path, quantized_file: Path) -> float:
    """Compare every weight of 8 bits with its value, from which it may be one step away; return the largest step.

    Raises:
        ValueError: one is further away, or a matrix was not quantized.
    """
    exact, found = constants(float_file), constants(quantized_file)
    largest = 0.0
    for name, matrix in exact.items():
        if matrix.ndim != 2:
            continue
        stored_as = {name: matrix, f"{name}_Transposed": matrix.T}
        quantized = {stored: values for stored, values in stored_as.items() if f"{stored}_quantized" in found}
        if name in found or not quantized:
            raise ValueError(f"verification failed: {name} has no 8-bit weights")
        for stored, values in quantized.items():
            step, zero = found[f"{stored}_scale"], found[f"{stored}_zero_point"].astype(np.float32)
            difference = np.abs((found[f"{stored}_quantized"] - zero) * step - values)
            if not (difference <= step).all():
                raise ValueError(f"verification failed: 8-bit {stored} differs by up to {difference.max():.3g}")
            largest = max(largest, float(step.max()))
    return largest


def constants(path: Path) -> dict[str, np.ndarray]:
    """Read the constants of an ONNX file."""
    return {value.name: numpy_helper.to_array(value) for value in onnx.load(path).graph.initializer}


def loss(model: OnnxModel, token_ids: list[int], window: int) -> float:
    """Return the mean cross-entropy in nats per token, in windows that follow each other."""
    losses = []
    for start in range(0, len(token_ids) - window, window):
        logits = model.text_logits(token_ids[start : start + window]).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        right = logits[np.arange(window), token_ids[start + 1 : start + window + 1]]
        losses.append(np.log(np.exp(logits).sum(axis=-1)) - right)
    return float(np.mean(losses))
