"""Proves that a model of ours becomes transformers' own GPT-2 and comes back bit for bit, or is refused and why."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification
from hf_gpt_scratch.conversion.convert import convert_checkpoint
from hf_gpt_scratch.conversion.export import export_stock
from hf_gpt_scratch.hub.repository import build_repository
from tests.conversion.foreign_models import draw


def build(
    folder: Path, model_class: type = GPTScratchForCausalLM, dtype: torch.dtype = torch.float32, **changes
) -> Path:
    settings = {
        "vocab_size": 29, "max_position_embeddings": 12, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    model = draw(model_class(GPTScratchConfig(**settings | changes))).to(dtype)
    return build_repository(model, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"qkv_bias": False, "dropout": 0.0, "layer_norm_eps": 1e-3},
        {"dtype": torch.bfloat16, "pad_token_id": None, "intermediate_size": None},
        {"vocab_size": 50257},
        {"hidden_act": "gelu_new", "use_cache": False},
    ],
    ids=lambda changes: next(iter(changes), "plain"),
)
@torch.no_grad()
def test_round_trip_is_bit_identical(changes: dict, tmp_path: Path) -> None:
    ours = build(tmp_path / "ours", **changes)
    report = export_stock(ours, tmp_path / "stock", verify=False)
    stock, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "stock", trust_remote_code=False, output_loading_info=True
    )
    assert type(stock) is GPT2LMHeadModel
    assert not any(info.values())
    assert not list((tmp_path / "stock").glob("*.py"))
    assert any("biases of q, k and v: they are zero" in note for note in report["notes"]) == ("qkv_bias" in changes)
    card, lost = (tmp_path / "stock" / "README.md").read_text(), "CTranslate2 4.8 changes layer_norm_epsilon from"
    assert (f"Note: {lost} 0.001 to 1e-05 without" in card) == (lost in card) == ("layer_norm_eps" in changes)

    model = GPTScratchForCausalLM.from_pretrained(ours, dtype=torch.float32).eval()
    stock = stock.float().eval()
    ids = torch.randint(0, 29, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = model(ids).logits
    assert expected.std() > 0.1
    assert (stock(ids).logits - expected).abs().max() <= 1e-5
    assert AutoTokenizer.from_pretrained(tmp_path / "stock").encode("Every effort moves you") == [
        6109,
        3626,
        6100,
        345,
    ]

    convert_checkpoint(tmp_path / "stock", tmp_path / "back", dtype=report["dtype"], verify=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (ours, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert values.dtype == after[name].dtype
        assert torch.equal(values, after[name])
    if "hidden_act" not in changes:  # gelu_new comes back as the kernel of the same function
        config = (ours / "config.json").read_text()
        if "vocab_size" not in changes:  # the converter writes no tokenizer for 29 ids, and so names none
            config = config.replace('  "tokenizer_class": "GPT2Tokenizer",\n', "")
        assert config == (tmp_path / "back" / "config.json").read_text()


def test_a_lost_tie_or_swapped_projection_would_be_seen(tmp_path: Path) -> None:
    """The control of the test above."""
    ours = build(tmp_path / "ours")
    export_stock(ours, tmp_path / "stock", verify=False)
    path = tmp_path / "stock" / "model.safetensors"
    tensors = load_file(path)
    fused = tensors["transformer.h.0.attn.c_attn.weight"]
    tensors["transformer.h.0.attn.c_attn.weight"] = fused.roll(16, dims=1)
    save_file(tensors, path)
    convert_checkpoint(tmp_path / "stock", tmp_path / "back", verify=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (ours, tmp_path / "back"))
    assert not torch.equal(before, after)

    # And a head of its own, where the model had none.
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match="lm_head.weight differs from transformer.wte.weight, though config.json ties"
    ):
        convert_checkpoint(tmp_path / "stock", tmp_path / "untied", verify=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and the tools that know GPT-2 compute the tanh form"),
        ({"hidden_act": "relu"}, "another activation cannot be exported as GPT-2"),
        ({"model_class": GPTScratchForSequenceClassification}, "score.weight has no place in a GPT-2 language model"),
    ],
)
def test_what_gpt2_cannot_be_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    ours = build(tmp_path / "ours", **changes)
    with pytest.raises(ValueError, match=message) as refusal:
        export_stock(ours, tmp_path / "stock", verify=False)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "stock").exists()


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    export_stock(build(tmp_path / "ours"), tmp_path / "stock", verify=False)
    with pytest.raises(ValueError, match="is not a gpt_scratch model"):
        export_stock(tmp_path / "stock", tmp_path / "again")
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())
    (tmp_path / "ours" / "config.json").write_text(json.dumps(settings | {"hidden_size": "16"}))
    with pytest.raises(ValueError, match="lacks hidden_size: fetch it again"):
        export_stock(tmp_path / "ours", tmp_path / "again")
    (tmp_path / "ours" / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"layers.2.input_layernorm.weight is missing; .* and 8 more"):
        export_stock(tmp_path / "ours", tmp_path / "again")


def test_zero_biases_that_were_trained_since_are_not_dropped(tmp_path: Path) -> None:
    export_stock(build(tmp_path / "ours", qkv_bias=False), tmp_path / "stock", verify=False)
    path = tmp_path / "stock" / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.attn.c_attn.bias"][20] = 0.5
    save_file(tensors, path)
    with pytest.raises(ValueError, match="transformer.h.1.attn.c_attn.bias is not zero: remove qkv_bias there"):
        convert_checkpoint(tmp_path / "stock", tmp_path / "back")
    settings = json.loads((tmp_path / "stock" / "config.json").read_text())
    del settings["qkv_bias"]
    (tmp_path / "stock" / "config.json").write_text(json.dumps(settings))
    assert convert_checkpoint(tmp_path / "stock", tmp_path / "back", verify=False)["config"]["qkv_bias"] is True


def test_export_is_verified_without_remote_code(tmp_path: Path) -> None:
    report = export_stock(build(tmp_path / "ours", vocab_size=50257), tmp_path / "stock", max_shard_size=100_000)
    assert report["verification"]["class"] == "GPT2LMHeadModel"
    assert report["verification"]["max_value_difference"] == 0
    assert report["verification"]["max_logit_difference"]["float64"]["text"] < 1e-8
    assert (tmp_path / "stock" / "model.safetensors.index.json").is_file()
    assert json.loads((tmp_path / "stock" / "conversion_report.json").read_text()) == report
