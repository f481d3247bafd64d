"""Proves Muon against its formula, which parameters it gets, and that a run with it resumes bit for bit."""

import copy
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.training import muon
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.muon import MuonWithAdamW, StackedMuon
from hf_gpt_scratch.training.optim import build_optimizer, set_learning_rate
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, step_losses, without_speed


def two_steps(model: GPTScratchForCausalLM, optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    """Train on two batches; return the gradients."""
    gradients = []
    for seed in (1, 2):
        ids = torch.randint(0, 101, (16, 16), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad.double() for name, p in model.named_parameters()})
        optimizer.step()
    return gradients


@pytest.mark.parametrize("tied", [True, False])
def test_muon_gets_the_matrices_of_the_layers_and_nothing_else(tiny_config: GPTScratchConfig, tied: bool) -> None:
    tiny_config.tie_word_embeddings = tied
    model = GPTScratchForCausalLM(tiny_config)
    optimizer = build_optimizer(model, TrainingSettings(optim="muon", weight_decay=0.3))
    by_muon = {id(p): "momentum" in group for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(by_muon) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert by_muon[id(parameter)] == (".layers." in name and name.endswith("proj.weight")), name
        assert decay[id(parameter)] == (0.3 if name.endswith(("proj.weight", "lm_head.weight")) else 0.0), name


@pytest.mark.parametrize("decay", [0.95, 0.8])
def test_updates_of_matrices_are_orthogonal_and_of_adamws_size(tiny_config: GPTScratchConfig, decay: float) -> None:
    """Against the momentum of two gradients by hand and its singular vectors, not against an iteration."""
    torch.manual_seed(0)
    model = GPTScratchForCausalLM(tiny_config)
    optimizer = build_optimizer(model, TrainingSettings(optim="muon", muon_momentum=decay, weight_decay=0.2))
    set_learning_rate(optimizer, 0.01)
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    gradients = two_steps(model, optimizer)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.2.self_attn.v_proj.weight"):
        weight, momentum = before[name], torch.zeros_like(before[name])
        for gradient in (step[name] for step in gradients):
            momentum = decay * momentum + (1 - decay) * gradient
            left, _, right = torch.linalg.svd((1 - decay) * gradient + decay * momentum, full_matrices=False)
            weight = weight * (1 - 0.01 * 0.2) - 0.01 * 0.2 * max(weight.shape) ** 0.5 * left @ right
        expected = (weight - before[name]).flatten()
        moved = (dict(model.named_parameters())[name].detach().double() - before[name]).flatten()
        # The iteration ends with singular values between 0.7 and 1.2 in place of 1.
        assert torch.cosine_similarity(moved, expected, dim=0) > 0.95, name
        assert moved.norm() == pytest.approx(expected.norm().item(), rel=0.25)
        # The control: the momentum itself points elsewhere.
        assert torch.cosine_similarity(moved, -momentum.flatten(), dim=0) < 0.9, name


SHAPES = [(16, 16), (64, 16), (16, 16), (16, 64), (7, 16), (64, 16), (16, 16)]


def matrices_after_three_steps(
    kind: type[torch.optim.Muon], dtype: torch.dtype = torch.float32, **options: Any
) -> list[torch.Tensor]:
    """Update matrices of several shapes by gradients of very unequal singular values; the third has none at first."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    optimizer = kind(matrices, lr=0.01, weight_decay=0.2, adjust_lr_fn="match_rms_adamw", **options)
    for step in range(3):
        for number, matrix in enumerate(matrices):
            gradient = torch.randn(matrix.shape, generator=generator) * torch.logspace(0, -2, matrix.shape[1])
            matrix.grad = None if (step, number) == (0, 2) else gradient.to(dtype)
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


@pytest.mark.parametrize("most_elements", [1, 600, 2**20], ids=["each alone", "in parts", "together"])
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "momentum": 0.8, "ns_steps": 3}], ids=["usual", "other"])
def test_stacked_updates_equal_those_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, most_elements: int, options: dict[str, Any]
) -> None:
    """To the rounding of bfloat16: 2**-8 of a direction of length 1, over a few products; here to the last bit."""
    expected = matrices_after_three_steps(torch.optim.Muon, **options)
    monkeypatch.setattr(muon, "MOST_ELEMENTS", most_elements)
    moved = [
        difference(ours, theirs)
        for ours, theirs in zip(matrices_after_three_steps(StackedMuon, **options), expected, strict=True)
    ]
    assert max(moved) < 1e-4
    # The control: the directions of one iteration less lie further away than the tolerance.
    fewer = {**options, "ns_steps": options.get("ns_steps", 5) - 1}
    assert difference(matrices_after_three_steps(StackedMuon, **fewer)[0], expected[0]) > 1e-3


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; an update moves each of the elements by about 0.002."""
    return (one - other).abs().max().item()


def test_muon_of_pytorch() -> None:
    """Its defaults, refusals, and scale: by rows over columns, so another one for a weight that lies (in, out)."""
    moved = []
    for shape in ((96, 32), (32, 96)):
        matrix = torch.nn.Parameter(torch.zeros(shape))
        matrix.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Muon([matrix], lr=1.0)
        optimizer.step()
        moved.append(matrix.detach().square().mean().sqrt().item())
    assert moved == [pytest.approx(0.146, abs=2e-3), pytest.approx(0.082, abs=2e-3)]
    assert moved[0] / moved[1] == pytest.approx(3**0.5, rel=0.05)
    usual = {"weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_coefficients": (3.4445, -4.775, 2.0315)}
    assert optimizer.defaults == usual | {"lr": 1.0, "eps": 1e-7, "ns_steps": 5, "adjust_lr_fn": None}
    assert inspect.signature(torch.optim.Muon).parameters["lr"].default == 1e-3
    for shape in ((3,), (2, 3, 4)):
        with pytest.raises(ValueError, match="only supports 2D parameters"):
            torch.optim.Muon([torch.nn.Parameter(torch.zeros(shape))])


def test_matrices_of_a_shape_and_its_transpose_share_a_stack() -> None:
    matrices = [torch.zeros(shape) for shape in SHAPES]
    found = [[tuple(matrix.shape) for matrix in stack] for stack in muon.stacks(matrices)]
    assert found == [[(16, 16)] * 3, [(64, 16), (16, 64), (64, 16)], [(7, 16)]]


def test_everything_else_is_updated_by_adamw(tiny_config: GPTScratchConfig) -> None:
    models = []
    for optim in ("muon", "adamw_torch_fused"):
        torch.manual_seed(0)
        models.append(GPTScratchForCausalLM(tiny_config))
        ids = torch.randint(0, 101, (2, 8))
        models[-1](ids, labels=ids).loss.backward()
        build_optimizer(models[-1], TrainingSettings(optim=optim)).step()
    for (name, by_muon), by_adamw in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(by_muon, by_adamw) != (".layers." in name and name.endswith("proj.weight")), name


def test_state_goes_through_a_state_dict(tiny_config: GPTScratchConfig) -> None:
    """Both optimizers go on from a loaded state; forgetting it would give other weights."""
    models, optimizers = [], []
    for _ in range(3):
        torch.manual_seed(1)
        models.append(GPTScratchForCausalLM(tiny_config))
        optimizers.append(build_optimizer(models[-1], TrainingSettings(optim="muon")))
    assert isinstance(optimizers[0], MuonWithAdamW)
    two_steps(models[0], optimizers[0])
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        two_steps(model, optimizer)
    for name in ("model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"):
        expected, loaded, forgotten = (dict(model.named_parameters())[name] for model in models)
        assert torch.equal(loaded, expected)
        assert not torch.equal(forgotten, expected)


def test_resume_with_muon_is_bit_identical(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    settings = tiny_settings(optim="muon", dropout=0.1, max_steps=8, save_steps=3, save_total_limit=9)
    train(settings)
    folder = tmp_path / "resumed"
    shutil.copytree(settings.output_dir, folder)
    for step in (6, 8):  # as if killed after the first save
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")
    train(TrainingSettings(**{**settings.to_dict(), "output_dir": str(folder), "resume": True}))
    assert [without_speed(row) for row in rows(folder, "step")] == [
        without_speed(row) for row in rows(settings.output_dir, "step")
    ]
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = Path("checkpoints", "step-00000008", name)
        assert (folder / file).read_bytes() == (settings.output_dir / file).read_bytes(), name
    adamw = tiny_settings(dropout=0.1, max_steps=8, output_dir=str(tmp_path / "adamw"))
    train(adamw)
    assert step_losses(adamw.output_dir) != step_losses(settings.output_dir)
