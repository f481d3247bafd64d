"""Holds the ONNX graph against transformers' GPT-2: whole texts, a cache, a padded batch, what is past the context."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch.conversion.verify_onnx import OnnxModel
from hf_gpt_scratch.conversion.writers.onnx_graph import gpt2_model
from tests.conversion.foreign_models import draw


TOLERANCE = 2e-5  # of a logit; float32 in another order, where the logits reach 10
LENGTH, CONTEXT = 9, 12


def build(file: Path, **changes: object) -> tuple[OnnxModel, GPT2LMHeadModel]:
    settings = {"vocab_size": 29, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 40}
    model = draw(GPT2LMHeadModel(GPT2Config(**settings | changes)))
    tensors = {name: values.numpy() for name, values in model.state_dict().items()}
    names = {
        "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd",
        "layer_norm_eps": "layer_norm_epsilon", "vocab_size": "vocab_size", "max_position_embeddings": "n_positions",
        "tie_word_embeddings": "tie_word_embeddings",
    }  # fmt: skip
    graph = gpt2_model(tensors, {ours: getattr(model.config, theirs) for ours, theirs in names.items()})
    onnx.checker.check_model(graph, full_check=True)
    file.write_bytes(graph.SerializeToString())
    return OnnxModel(file), model


@pytest.fixture
def built(tmp_path: Path) -> tuple[OnnxModel, GPT2LMHeadModel]:
    return build(tmp_path / "model.onnx")


def ids(rows: int, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 29, (rows, length))


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"layer_norm_epsilon": 1e-2}, {"n_head": 1}, {"n_inner": None}],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_logits_are_those_of_transformers(changes: dict, tmp_path: Path) -> None:
    ours, theirs = build(tmp_path / "model.onnx", **changes)
    given = ids(2)
    with torch.no_grad():
        expected = theirs(torch.tensor(given)).logits.numpy()
    positions = np.broadcast_to(np.arange(LENGTH), given.shape)
    logits, _ = ours(given, np.ones_like(given), positions, ours.empty_cache(2))
    assert expected.std() > 0.1
    assert np.abs(logits - expected).max() <= TOLERANCE
    for keep in (1, 3):
        last, _ = ours(given, np.ones_like(given), positions, ours.empty_cache(2), keep)
        assert np.abs(last - expected[:, -keep:]).max() <= TOLERANCE


@pytest.mark.parametrize("fault", [None, "positions", "mask", "cache"])
def test_a_padded_batch_with_a_cache(fault: str | None, built: tuple) -> None:
    """The second row has two tokens of padding in front; with a fault in what is given the logits are others."""
    ours, theirs = built
    given = ids(2)
    mask = np.ones_like(given)
    mask[1, :2] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        options = {"attention_mask": torch.tensor(mask), "position_ids": torch.tensor(positions)}
        expected = theirs(torch.tensor(given), **options).logits.numpy()
    if fault == "mask":
        mask[:] = 1
    found, cache = [], ours.empty_cache(2)
    for start, end in ((0, 4), (4, 5), (5, LENGTH)):
        new = positions[:, start:end]
        if fault == "positions" and start:
            new = new - start  # as if nothing were in the cache
        logits, cache = ours(given[:, start:end], mask[:, :end], new, cache)
        if fault == "cache":
            cache = {name: np.roll(states, 1, axis=1) for name, states in cache.items()}  # another head's
        found.append(logits)
    difference = np.abs(np.concatenate(found, 1) - expected)
    assert difference[0].max() <= TOLERANCE or fault in ("positions", "cache")
    if fault:
        assert difference.max() > 0.05
    else:
        assert difference[1, 2:].max() <= TOLERANCE
        assert {states.shape for states in cache.values()} == {(2, 4, LENGTH, 4)}


def test_names_are_those_that_transformers_js_gives(built: tuple) -> None:
    ours, _ = built
    inputs = {value.name: value.shape for value in ours.session.get_inputs()}
    assert [*inputs][:4] == ["input_ids", "attention_mask", "position_ids", "num_logits_to_keep"]
    assert [*inputs][4:] == [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert {inputs[name][0] for name in [*inputs][4:]} == {"batch_size"}
    assert ours.outputs == ["logits", *(f"present.{layer}.{part}" for layer in range(2) for part in ("key", "value"))]


def test_the_error_past_the_context_says_so(built: tuple) -> None:
    ours, _ = built
    assert ours.text_logits(ids(1, CONTEXT)[0].tolist()).shape == (CONTEXT, 29)
    with pytest.raises(
        onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="text_past_the_context_of_12_tokens"
    ):
        ours.text_logits(ids(1, CONTEXT + 1)[0].tolist())
