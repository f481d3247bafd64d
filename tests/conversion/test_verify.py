"""Proves that the proof is one: its forward pass is each program's own, and it refuses every fault that is put in."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.conversion import convert
from hf_gpt_scratch.conversion.convert import convert_checkpoint
from hf_gpt_scratch.conversion.readers.safetensors_reader import SafetensorsFiles
from hf_gpt_scratch.conversion.readers.sources import open_source
from hf_gpt_scratch.conversion.verify import (
    SourceWeights,
    activation,
    compare_logits,
    compare_values,
    expected_tensors,
    forward,
    round_to,
    verify_folder,
)
from tests.conversion.bundle_writer import gpt2_tensors, write_bundle
from tests.conversion.foreign_models import NanoGPT, TutorialGPT, draw


SIZES = {"vocab": 29, "context": 12, "width": 16, "num_layers": 2, "num_heads": 4}
CONFIG = {
    "vocab_size": 29,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu_pytorch_tanh",
    "qkv_bias": True,
    "tie_word_embeddings": True,
}
TOKEN_IDS = [3, 1, 4, 1, 5, 9, 2, 6, 28, 0]
STOCK = GPT2Config(vocab_size=29, n_positions=12, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)


def our_model(**changes: object) -> torch.nn.Module:
    config = GPTScratchConfig(
        vocab_size=29, max_position_embeddings=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, **changes,
    )  # fmt: skip
    return draw(GPTScratchForCausalLM(config))


@pytest.mark.parametrize(
    ("format_name", "build", "changes"),
    [
        ("gpt2", lambda: draw(GPT2LMHeadModel(STOCK)), {}),
        ("nanogpt", lambda: draw(NanoGPT(**SIZES)), {"hidden_act": "gelu"}),
        ("nanogpt", lambda: draw(NanoGPT(**SIZES, bias=False)), {"hidden_act": "gelu"}),
        ("tutorial", lambda: draw(TutorialGPT(**SIZES, qkv_bias=True)), {}),
        ("tutorial", lambda: draw(TutorialGPT(**SIZES, qkv_bias=False)), {}),
        ("gpt_scratch", lambda: our_model(tie_word_embeddings=False, qkv_bias=False), {}),
        ("gpt_scratch", lambda: our_model(hidden_act="silu"), {"hidden_act": "silu"}),
        ("gpt_scratch", lambda: our_model(hidden_act="relu"), {"hidden_act": "relu"}),
    ],
)
@torch.no_grad()
def test_the_forward_pass_is_that_of_each_program(format_name: str, build: Callable, changes: dict) -> None:
    model = build().double()
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    ours = forward(SourceWeights(tensors, format_name, 29), TOKEN_IDS, CONFIG | changes)
    theirs = model(torch.tensor([TOKEN_IDS]))
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.logits
    assert theirs.std() > 0.1
    # The square root of two over pi is a float32 constant nowhere but in rounding: only the order of sums differs.
    assert np.abs(ours - theirs[0].numpy()).max() < 1e-10


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and the folder made of it, not verified."""
    folder = tmp_path_factory.mktemp("converted")
    tensors = gpt2_tensors(hidden_size=16, num_layers=2, vocab_size=29, context_length=12)
    write_bundle(
        folder / "source" / "model.ckpt", {name: np.float32(0.3) * values for name, values in tensors.items()}
    )
    convert_checkpoint(folder / "source", folder / "out", num_heads=4, verify=False)
    return folder / "source", folder / "out"


def compare(converted: tuple[Path, Path], path: Path, dtype: str = "float32") -> float:
    source = SourceWeights(open_source(converted[0]).tensors, "openai", 29)
    return compare_values(SafetensorsFiles([path]), expected_tensors(source, CONFIG), dtype)


def test_one_place_of_one_value_is_seen(converted: tuple[Path, Path], tmp_path: Path) -> None:
    good = load_file(converted[1] / "model.safetensors")
    path = tmp_path / "x.safetensors"
    save_file(good, path)
    assert compare(converted, path) == 0
    for name in good:
        changed = {key: values.clone() for key, values in good.items()}
        value = changed[name].view(-1)[-1:]
        value.copy_(torch.nextafter(value, torch.tensor([9.0])))
        save_file(changed, path)
        with pytest.raises(ValueError, match=f"verification failed: {name} differs from its source"):
            compare(converted, path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_allowed_and_a_place_more_is_not(dtype: str, converted: tuple, tmp_path: Path) -> None:
    torch_dtype = getattr(torch, dtype)
    good = {name: values.to(torch_dtype) for name, values in load_file(converted[1] / "model.safetensors").items()}
    path = tmp_path / "x.safetensors"
    save_file(good, path)
    assert 0 < compare(converted, path, dtype) < 0.01
    good["model.norm.bias"].view(torch.int16)[3] += 1
    save_file(good, path)
    with pytest.raises(ValueError, match="model.norm.bias differs"):
        compare(converted, path, dtype)


def test_missing_extra_and_misshapen_tensors_are_seen(converted: tuple[Path, Path], tmp_path: Path) -> None:
    good = load_file(converted[1] / "model.safetensors")
    path = tmp_path / "x.safetensors"
    bias = "model.layers.1.self_attn.k_proj.bias"
    for change, message in (
        (lambda d: d.pop(bias), f"{bias} was not written"),
        (lambda d: d.update(extra=torch.ones(1)), "extra has no source"),
        (lambda d: d.update({bias: torch.ones(3)}), rf"{bias} is \[3\], not \[16\]"),
        (lambda d: d.update({bias: torch.full((16,), torch.nan)}), f"{bias} holds values that are not finite"),
    ):
        changed = dict(good)
        change(changed)
        save_file(changed, path)
        with pytest.raises(ValueError, match=message):
            compare(converted, path)


@pytest.mark.parametrize(
    "fault",
    [{"layer_norm_eps": 1e-6}, {"hidden_act": "gelu"}, {"num_attention_heads": 2}, {}],
    ids=lambda fault: next(iter(fault), "none"),
)
def test_logits_show_what_values_cannot(fault: dict, converted: tuple[Path, Path], tmp_path: Path) -> None:
    """Epsilon, activation and heads are in no tensor."""
    model = GPTScratchForCausalLM.from_pretrained(converted[1], dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.tensor([TOKEN_IDS])).logits[0]
    np.save(tmp_path / "fixed-float64.npy", logits.numpy())
    source = SourceWeights(open_source(converted[0]).tensors, "openai", 29)
    result = {"dtypes": ["float64"], "sequences": {"fixed": TOKEN_IDS}}
    if not fault:
        assert compare_logits(source, CONFIG, result, tmp_path)["float64"]["fixed"] < 1e-12
        np.save(tmp_path / "fixed-float64.npy", np.where(logits == logits.max(), np.nan, logits))
    with pytest.raises(ValueError, match=r"verification failed: logits differ by .* \(float64, fixed sequence\)"):
        compare_logits(source, CONFIG | fault, result, tmp_path)


def test_a_failed_verification_leaves_nothing(
    converted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = convert.tensor_blocks

    def slightly_wrong(*arguments: object) -> Iterator[tuple[str, np.ndarray]]:
        return ((name, values * np.float32(1.0001)) for name, values in original(*arguments))

    monkeypatch.setattr(convert, "tensor_blocks", slightly_wrong)
    with pytest.raises(ValueError, match="verification failed: model.embed_tokens.weight differs"):
        convert_checkpoint(converted[0], tmp_path / "out", num_heads=4)
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = gpt2_tensors(hidden_size=16, num_layers=2, vocab_size=29, context_length=12)
    tensors["model/h1/mlp/c_fc/w"][0, 3, 5] = np.nan
    write_bundle(tmp_path / "source" / "model.ckpt", tensors)
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight holds values that are not finite"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", num_heads=4)


def test_a_folder_that_needs_the_package_does_not_pass(converted: tuple[Path, Path], tmp_path: Path) -> None:
    source, config = open_source(converted[0]), json.loads((converted[1] / "config.json").read_text())
    report = {"format": "openai", "config": config, "dtype": "float32"}
    folder = tmp_path / "folder"
    shutil.copytree(converted[1], folder)
    weights = [folder / "model.safetensors"]
    result = verify_folder(folder, weights, source.tensors, report)
    assert result["class"] == "GPTScratchForCausalLM"
    assert result["tied"] is True
    assert result["max_logit_difference"]["float64"]["fixed"] < 1e-12
    assert 0 < result["max_logit_difference"]["float32"]["fixed"] < 1e-5

    code = folder / "modeling_gpt_scratch.py"
    code.write_text(code.read_text() + "\nimport importlib\nimportlib.import_module('hf_gpt_scratch')\n")
    with pytest.raises(ValueError, match=r"does not load \(ModuleNotFoundError: .*hf_gpt_scratch"):
        verify_folder(folder, weights, source.tensors, report)


def test_activations_and_rounding() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    for name, theirs in (
        ("gelu_pytorch_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("gelu", torch.nn.functional.gelu),
        ("relu", torch.relu),
        ("silu", torch.nn.functional.silu),
    ):
        assert np.abs(activation(name)(x.numpy()) - theirs(x).numpy()).max() < 1e-14
    assert np.array_equal(round_to("bfloat16")(x.float().numpy()), x.float().bfloat16().float().numpy())
