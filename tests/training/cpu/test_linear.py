"""Proves that the products are those of nn.Linear, gradients included, and which library makes them, and where."""

import copy
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.model.modeling_gpt_scratch import GPTScratchMLP
from hf_gpt_scratch.training.cpu import linear as cpu_linear
from hf_gpt_scratch.training.cpu.linear import CpuLinear, CpuMLP, is_onednn_faster, use_fast_linear
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings


@pytest.fixture(params=["onednn", "mkl"], autouse=True)
def library(request, monkeypatch):
    """All that is proved here holds for either, whatever this processor is faster with."""
    monkeypatch.setattr(cpu_linear, "is_onednn_faster", lambda: request.param == "onednn")
    return request.param


CPU = SimpleNamespace(mixed_precision="no", is_fsdp2=False, device=torch.device("cpu"))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 64, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_linear_layer(shape, bias):
    torch.manual_seed(0)
    plain = nn.Linear(5, 7, bias=bias)
    inputs = torch.randn(shape, requires_grad=True)
    expected = plain.double()(inputs.double())
    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), [inputs, *plain.parameters()])
    ours = plain.float()
    ours.__class__ = CpuLinear
    got = ours(inputs)
    gradients = torch.autograd.grad((got * weights.float()).sum(), [inputs, *ours.parameters()])
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=2e-6)


def test_a_gradient_that_is_no_tensor_of_its_own():
    """`sum` hands down one number, expanded; frozen weights want no gradient."""
    layer = nn.Linear(4, 6).requires_grad_(False)
    layer.__class__ = CpuLinear
    inputs = torch.randn(2, 3, 4, requires_grad=True)
    layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(2, 3, 4))
    assert layer.weight.grad is None


def test_which_library_multiplies(library):
    layer = nn.Linear(4, 6)
    layer.__class__ = CpuLinear
    with torch.profiler.profile() as profiler:
        layer(torch.ones(2, 4))
    names = {event.key for event in profiler.key_averages()}
    assert ("mkldnn::_linear_pointwise" in names) is (library == "onednn")


@pytest.mark.parametrize(
    ("name", "capability", "is_available", "is_faster"),
    [
        ("AMD EPYC", "AVX512", True, True),
        ("AMD EPYC", "AVX512", False, False),
        ("AMD EPYC", "AVX2", True, False),
        ("AMD EPYC", "DEFAULT", True, False),
        ("Intel Xeon", "AVX512", True, False),
        (None, "AVX512", True, True),
    ],
)
def test_which_library_is_faster(monkeypatch, name, capability, is_available, is_faster):
    capabilities = {} if name is None else {"cpu_name": name}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: is_available)
    assert is_onednn_faster.__wrapped__() is is_faster


def keep(kept, tensor):
    kept.append(tensor)
    return tensor


def test_the_mlp_is_the_same_and_keeps_one_wide_tensor():
    """Values and gradients in float64 and ours in float32; what is kept, by autograd's own hooks."""
    torch.manual_seed(0)
    inputs = torch.randn(3, 5, 8, requires_grad=True)
    plain = GPTScratchMLP(GPTScratchConfig(hidden_size=8, num_attention_heads=2))
    ours = copy.deepcopy(plain)
    for module in (ours.up_proj, ours.down_proj):
        module.__class__ = CpuLinear
    ours.__class__ = CpuMLP
    results, sizes = [], []
    for mlp, dtype in ((plain.double(), torch.float64), (ours, torch.float32)):
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), lambda tensor: tensor):
            outputs = mlp(inputs.to(dtype))
        sizes.append([tensor.numel() for tensor in kept])
        loss = (outputs * torch.arange(8)).sin().sum()
        results.append([outputs, *torch.autograd.grad(loss, [inputs, *mlp.parameters()])])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)
    assert [each.count(3 * 5 * 32) for each in sizes] == [2, 1]


def test_frozen_down_projections_pass_the_gradient_on():
    mlp = GPTScratchMLP(GPTScratchConfig(hidden_size=8, num_attention_heads=2))
    inputs = torch.randn(2, 8, requires_grad=True)
    mlp.down_proj.requires_grad_(False)
    (expected,) = torch.autograd.grad(mlp(inputs).sum(), inputs)
    mlp.__class__ = CpuMLP
    (got,) = torch.autograd.grad(mlp(inputs).sum(), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def build(width):
    config = GPTScratchConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8
    )
    return GPTScratchForCausalLM(config)


@pytest.mark.parametrize(
    ("width", "changes", "compiled", "is_used"),
    [
        (256, {}, False, True),
        (128, {}, False, False),
        (256, {"mixed_precision": "bf16"}, False, False),
        (256, {"is_fsdp2": True}, False, False),
        (256, {"device": torch.device("cuda")}, False, False),
        (256, {}, True, False),
    ],
)
def test_where_it_is_used(width, changes, compiled, is_used):
    model = build(width)
    use_fast_linear(model, SimpleNamespace(**vars(CPU) | changes), compiled)
    layers = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 6
    assert all((type(layer) is CpuLinear) is is_used for layer in layers)
    assert (type(model.model.layers[0].mlp) is CpuMLP) is is_used
    assert type(model.lm_head) is nn.Linear


def test_a_run_takes_the_same_course(tmp_path, monkeypatch):
    """Losses with and without, over three steps, with samples, evaluation, checkpoints and the model folder."""
    courses = []
    for name, least_width in (("with", 256), ("without", 257)):
        monkeypatch.setattr(cpu_linear, "LEAST_WIDTH", least_width)
        settings = TrainingSettings(
            output_dir=str(tmp_path / name), hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=16, vocabulary="bytes", max_steps=3, warmup_steps=1, eval_iter=1,
            gradient_checkpointing=name == "with", dropout=0.0,
        )  # fmt: skip
        train(settings)
        rows = map(json.loads, (tmp_path / name / "history.jsonl").read_text(encoding="utf-8").splitlines())
        courses.append([row["loss"] for row in rows if "loss" in row])
    assert len(courses[0]) == 3
    assert courses[0] == pytest.approx(courses[1], rel=1e-5)
    assert len(set(courses[0])) == 3
