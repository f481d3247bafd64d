"""Proves that a checkpoint is accounted for in both directions: whatever is too much, missing, doubled or of another
shape is reported, all of it at once and in one line.
"""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.conversion.mapping import (
    FORMATS,
    GPT2,
    NANOGPT,
    OPENAI,
    TUTORIAL,
    Layout,
    detect_format,
    plan_moves,
    target_shapes,
)
from tests.conversion.bundle_writer import gpt2_shapes
from tests.conversion.foreign_models import NanoGPT, TutorialGPT


SIZES = {"vocab": 13, "context": 7, "width": 8, "num_layers": 2, "num_heads": 2}
CONFIG = {
    "vocab_size": 13,
    "max_position_embeddings": 7,
    "hidden_size": 8,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "qkv_bias": True,
    "tie_word_embeddings": True,
}
STOCK_CONFIG = GPT2Config(vocab_size=13, n_positions=7, n_embd=8, n_layer=2, n_head=2)


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def openai_shapes() -> dict[str, tuple[int, ...]]:
    return gpt2_shapes(hidden_size=8, num_layers=2, vocab_size=13, context_length=7)


def stock_shapes() -> dict[str, tuple[int, ...]]:
    shapes = shapes_of(GPT2LMHeadModel(STOCK_CONFIG))
    del shapes["lm_head.weight"]
    return shapes


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_targets_are_the_tensors_of_our_model(qkv_bias: bool, tied: bool) -> None:
    changes = {"qkv_bias": qkv_bias, "tie_word_embeddings": tied, "intermediate_size": 24}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    model = GPTScratchForCausalLM(GPTScratchConfig(**CONFIG | changes, **special))
    expected = shapes_of(model)
    if tied:
        del expected["lm_head.weight"]
    assert target_shapes(CONFIG | changes) == expected


@pytest.mark.parametrize(
    ("shapes", "format_"),
    [
        (openai_shapes(), OPENAI),
        (stock_shapes(), GPT2),
        (shapes_of(GPT2Model(STOCK_CONFIG)), GPT2),
        (shapes_of(NanoGPT(**SIZES)), NANOGPT),
        ({f"_orig_mod.{name}": shape for name, shape in shapes_of(NanoGPT(**SIZES, bias=False)).items()}, NANOGPT),
        (shapes_of(TutorialGPT(**SIZES, qkv_bias=True)), TUTORIAL),
        ({f"module.{name}": shape for name, shape in shapes_of(TutorialGPT(**SIZES)).items()}, TUTORIAL),
        ({f"model.{name}": shape for name, shape in shapes_of(TutorialGPT(**SIZES)).items()}, TUTORIAL),
        ({f"model.{name}": shape for name, shape in shapes_of(GPT2Model(STOCK_CONFIG)).items()}, GPT2),
        ({f"model._orig_mod.{name}": shape for name, shape in shapes_of(NanoGPT(**SIZES)).items()}, NANOGPT),
    ],
)
def test_format_is_told_from_names_and_everything_has_a_place(shapes: dict, format_: object) -> None:
    assert detect_format(shapes) is format_
    has_bias = any(name.endswith(("c_attn.bias", "c_attn/b", "W_query.bias")) for name in shapes)
    untied = format_ is TUTORIAL
    drop = {"lm_head.weight": "tied"} if format_ is NANOGPT else {}
    config = CONFIG | {"qkv_bias": has_bias, "tie_word_embeddings": not untied}
    plan = plan_moves(format_, shapes, config, drop=drop)
    assert {move.source for move in plan.moves} | set(plan.dropped) == set(shapes)
    filled = [target for move in plan.moves for target in move.targets] + plan.zeros
    assert sorted(filled) == sorted(target_shapes(config))
    assert bool(plan.zeros) == (format_ is NANOGPT and not has_bias)


def test_masks_and_training_state_are_named_as_dropped() -> None:
    shapes = stock_shapes() | {"transformer.h.1.attn.bias": (1, 1, 7, 7), "transformer.h.0.attn.masked_bias": ()}
    assert set(plan_moves(GPT2, shapes, CONFIG).dropped) == set(shapes) - set(stock_shapes())
    training = ("global_step", "model/wte/Adam", "model/wte/Adam_1", "beta1_power", "_CHECKPOINTABLE_OBJECT_GRAPH")
    dropped = plan_moves(OPENAI, openai_shapes() | dict.fromkeys(training, ()), CONFIG).dropped
    assert set(dropped) == set(training)
    assert all(dropped.values())


def test_every_target_has_one_row_in_every_table() -> None:
    for format_ in FORMATS.values():
        targets = [target for row in format_.rows for target in row.targets if ".att.qkv." not in row.source]
        if format_.name == "tutorial":  # which has a second attention, with one projection for all three
            targets.remove("model.layers.{i}.self_attn.o_proj.weight")
            targets.remove("model.layers.{i}.self_attn.o_proj.bias")
        assert len(targets) == len(set(targets))
        assert all(row.reason for row in format_.rows if not row.targets)


def without(shapes: dict, *names: str) -> dict:
    return {name: shape for name, shape in shapes.items() if name not in names}


@pytest.mark.parametrize(
    ("format_", "shapes", "message"),
    [
        (OPENAI, without(openai_shapes(), "model/h1/ln_1/g"), r"model/h1/ln_1/g is missing"),
        (OPENAI, without(openai_shapes(), "model/h1/attn/c_attn/b"), r"model/h1/attn/c_attn/b is missing"),
        (OPENAI, openai_shapes() | {"model/h0/extra": (3,)}, r"model/h0/extra \[3\] is unknown"),
        (OPENAI, openai_shapes() | {"model/h2/ln_1/g": (8,)}, r"h2/ln_1/g \[8\] has no place in a model of 2 layers"),
        (OPENAI, openai_shapes() | {"model/h00/ln_1/g": (8,)}, r"h00/ln_1/g \[8\] is unknown"),
        (OPENAI, openai_shapes() | {"model/wpe": (7, 9)}, r"model/wpe is \[7, 9\], not \[7, 8\]$"),
        (OPENAI, openai_shapes() | {"model/h0/mlp/c_fc/w": (1, 32, 8)}, r"looks transposed: Linear layout"),
        (OPENAI, openai_shapes() | {"model/h0/mlp/c_fc/w": (8, 32)}, r"is \[8, 32\], not \[1, 8, 32\]$"),
        (GPT2, stock_shapes() | {"transformer.h.0.attn.c_attn.weight": (24, 8)}, r"looks transposed: Linear layout"),
        (
            GPT2,
            stock_shapes() | {"wte.weight": (13, 8)},
            r"transformer.wte.weight and wte.weight are both model.embed",
        ),
        (GPT2, stock_shapes() | {"score.weight": (2, 8)}, r"score.weight \[2, 8\] is unknown"),
        (
            NANOGPT,
            without(shapes_of(NanoGPT(**SIZES)), "lm_head.weight") | {"transformer.h.1.mlp.c_fc.weight": (8, 32)},
            r"looks transposed: Conv1D layout",
        ),
        # Biases may be missing altogether, not here and there.
        (
            NANOGPT,
            without(shapes_of(NanoGPT(**SIZES)), "lm_head.weight", "transformer.h.1.mlp.c_fc.bias"),
            r"transformer.h.1.mlp.c_fc.bias is missing",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(format_: object, shapes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        plan_moves(format_, shapes, CONFIG)
    assert "\n" not in str(refusal.value)


def test_all_problems_are_reported_together_and_capped() -> None:
    shapes = without(openai_shapes(), "model/wpe", "model/ln_f/b") | {"model/odd": (1,)}
    with pytest.raises(ValueError, match=r"odd \[1\] is unknown; model/wpe is missing; model/ln_f/b is missing$"):
        plan_moves(OPENAI, shapes, CONFIG)
    shapes = openai_shapes() | {f"model/odd{n}": (1,) for n in range(20)}
    with pytest.raises(ValueError, match="and 12 more$"):
        plan_moves(OPENAI, shapes, CONFIG)


def test_unknown_tensors_are_no_format() -> None:
    with pytest.raises(ValueError, match="of no format that is known .* embeddings.word"):
        detect_format({"embeddings.word": (3, 4)})


def test_padding_of_the_vocabulary_is_cut_only_when_both_sizes_are_given() -> None:
    shapes = openai_shapes() | {"model/wte": (16, 8)}
    with pytest.raises(ValueError, match=r"model/wte is \[16, 8\], not \[13, 8\]"):
        plan_moves(OPENAI, shapes, CONFIG)
    plan = plan_moves(OPENAI, shapes, CONFIG, source_vocab_size=16)
    assert plan.shapes["model.embed_tokens.weight"] == (13, 8)


def test_layouts_join() -> None:
    assert Layout.LINEAR.join((4, 3), 3) == (12, 3)
    assert Layout.CONV1D.join((4, 3), 3) == (3, 12)
    assert Layout.CONV1D_TF.join((4, 3), 1) == (1, 3, 4)
    assert Layout.LINEAR.join((4,), 3) == tuple(np.zeros(12).shape)
