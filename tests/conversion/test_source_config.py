"""Proves that a config is built from shapes and settings only where they agree, and that nothing is guessed."""

import math
from typing import Any

import pytest

from hf_gpt_scratch.conversion.gpt2_sizes import GPT2_SIZES
from hf_gpt_scratch.conversion.mapping import GPT2, OPENAI, TUTORIAL
from hf_gpt_scratch.conversion.source_config import ACTIVATIONS, SETTINGS, build_config, sizes_from_shapes
from hf_gpt_scratch.model.configuration_gpt_scratch import check_field
from tests.conversion.bundle_writer import gpt2_shapes
from tests.conversion.foreign_models import TutorialGPT


SHAPES = gpt2_shapes(hidden_size=768, num_layers=2, vocab_size=11, context_length=6)
HPARAMS = {"n_vocab": 11, "n_ctx": 6, "n_embd": 768, "n_head": 12, "n_layer": 2}
GPT2_SHAPES = {
    "transformer.wte.weight": (11, 8),
    "transformer.wpe.weight": (6, 8),
    "transformer.h.0.mlp.c_fc.weight": (8, 20),
    "transformer.h.0.attn.c_attn.bias": (24,),
}
GPT2_SETTINGS: dict[str, Any] = {"vocab_size": 11, "n_positions": 6, "n_embd": 8, "n_layer": 1, "n_head": 2}


def test_sizes_are_read_off_the_tensors() -> None:
    assert sizes_from_shapes(OPENAI, SHAPES) == {
        "vocab_size": 11,
        "max_position_embeddings": 6,
        "hidden_size": 768,
        "num_hidden_layers": 2,
        "intermediate_size": 3072,
    }
    model = TutorialGPT(vocab=11, context=6, width=8, num_layers=3, num_heads=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(sizes_from_shapes(TUTORIAL, shapes).values()) == [11, 6, 8, 3, 32]


@pytest.mark.parametrize("size", GPT2_SIZES.values(), ids=lambda size: size.name)
def test_heads_of_a_released_width_are_known(size: Any) -> None:
    shapes = gpt2_shapes(hidden_size=size.hidden_size, num_layers=1, vocab_size=11, context_length=6)
    assert build_config(OPENAI, shapes, {})[0]["num_attention_heads"] == size.num_attention_heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 3}, "n_layer is 3 in the settings, 2 in the tensors$"),
        ({"n_ctx": 7, "n_vocab": 12}, "n_vocab is 12 in the settings, 11 in the tensors; n_ctx is 7"),
        ({"n_embd": "768"}, "n_embd is '768'"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_head": True}, "n_head is True"),
        ({"n_head": 12.0}, "n_head is 12.0"),
        ({"n_head": 6}, "n_head=6, but OpenAI's GPT-2 of width 768 has 12 heads"),
        ({"n_head": 7}, "n_head=7, but OpenAI's"),
        (GPT2_SIZES["355M"].hparams, "n_vocab is 50257 in .* n_ctx is 1024 .* n_embd is 1024 .* n_layer is 24"),
    ],
)
def test_wrong_hparams_are_refused(changes: dict, message: str) -> None:
    assert build_config(OPENAI, SHAPES, HPARAMS)[0]["num_attention_heads"] == 12
    with pytest.raises(ValueError, match=message) as refusal:
        build_config(OPENAI, SHAPES, HPARAMS | changes)
    assert "\n" not in str(refusal.value)


def test_number_of_heads_can_be_given() -> None:
    assert build_config(OPENAI, SHAPES, {}, 6)[0]["num_attention_heads"] == 6
    assert build_config(OPENAI, SHAPES, HPARAMS | {"n_head": 6}, 6)[0]["num_attention_heads"] == 6
    with pytest.raises(ValueError, match="--n_head 6 contradicts n_head=12"):
        build_config(OPENAI, SHAPES, HPARAMS, 6)
    with pytest.raises(ValueError, match="width of 768 cannot be cut into 7 heads"):
        build_config(OPENAI, SHAPES, {}, 7)
    shapes = gpt2_shapes(hidden_size=24, num_layers=1, vocab_size=11, context_length=6)
    with pytest.raises(ValueError, match="how many attention heads this model of width 24 has: add --n_head"):
        build_config(OPENAI, shapes, {})


@pytest.mark.parametrize("name", ["model/wte", "model/wpe", "model/h0/mlp/c_fc/w"])
def test_a_tensor_without_which_there_is_no_config_is_named(name: str) -> None:
    shapes = {key: shape for key, shape in SHAPES.items() if key not in (name, "model/h1/mlp/c_fc/w")}
    with pytest.raises(ValueError, match=f"{name} is missing or not a matrix"):
        build_config(OPENAI, shapes, HPARAMS)
    with pytest.raises(ValueError, match=f"{name} is missing or not a matrix"):
        build_config(OPENAI, {**shapes, name: (5,)}, HPARAMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, and our model knows"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"activation_function": "swish7"}, "activation_function is 'swish7'"),
        ({"activation_function": ["gelu"]}, r"activation_function is \['gelu'\]"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon is '1e-5'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0$"),
        ({"initializer_range": 0.0}, "initializer_range is 0.0$"),
        ({"resid_pdrop": 1.5}, "resid_pdrop is 1.5"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"n_inner": 32}, "n_inner is 32 in the settings, 20 in the tensors"),
        ({"eos_token_id": [1, "2"]}, r"eos_token_id is \[1, '2'\]"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
    ],
)
def test_gpt2_that_ours_cannot_be_is_refused(changes: dict, message: str) -> None:
    assert build_config(GPT2, GPT2_SHAPES, GPT2_SETTINGS)[0]["intermediate_size"] == 20
    with pytest.raises(ValueError, match=message):
        build_config(GPT2, GPT2_SHAPES, GPT2_SETTINGS | changes)


# Our model computes more activations than GPT-2's have names here, and no checkpoint may name a token of negative id.
STRICTER = {"hidden_act", "bos_token_id", "eos_token_id", "pad_token_id"}


@pytest.mark.parametrize("field", SETTINGS["gpt2"])
def test_what_is_refused_is_what_the_configuration_refuses(field: str) -> None:
    """The rules stand in two places, because a conversion does not import transformers."""
    ours = SETTINGS["gpt2"][field]
    own = GPT2_SETTINGS.get(field, 20)
    for value in (own, 0, -1, 1, 0.5, 0.0, -0.5, 1.0, 1e-5, 20, 1.5, math.inf, math.nan, "x", "gelu", True, [], [1]):
        try:
            check_field(ours, ACTIVATIONS.get(value, value) if isinstance(value, str) else value)
            is_refused = False
        except ValueError:
            is_refused = True
        try:
            build_config(GPT2, GPT2_SHAPES, GPT2_SETTINGS | {field: value})
        except ValueError as error:
            found = f"{field} is {value!r}"
            is_named = str(error).endswith((found, f"{found};")) or f"{found};" in str(error)
        else:
            is_named = False
        assert is_named == is_refused or (is_named and ours in STRICTER), value


def test_decisions_are_noted() -> None:
    config, notes = build_config(
        GPT2, GPT2_SHAPES, GPT2_SETTINGS | {"resid_pdrop": 0.2, "bos_token_id": 1, "eos_token_id": 11}
    )
    assert config["dropout"] == 0.2
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, None)
    assert any("three dropout probabilities" in note for note in notes)
    assert any("eos_token_id 11 is outside the vocabulary" in note for note in notes)
