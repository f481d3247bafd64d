"""Proves frozen parts: they stay to the last bit. Losses beside a plain loop: test_loop.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from hf_gpt_scratch.training.build import build_model
from hf_gpt_scratch.training.freezing import freeze
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.memory_estimate import estimate_memory
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.runs_in_one_world import copy_at_step


SettingsOf = Callable[..., TrainingSettings]
FROZEN = ["model.embed_*", "model.layers.0"]


def trained(settings: TrainingSettings) -> dict[str, torch.Tensor]:
    """Return weights and optimizer state of the last checkpoint."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    train(settings)
    checkpoint = Path(settings.output_dir) / "checkpoints" / f"step-{settings.max_steps:08d}"
    weights, moments = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "optimizer"))
    return weights | {f"state {name}": value for name, value in moments.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def is_frozen(name: str) -> bool:
    return name.startswith(("model.embed_", "model.layers.0."))


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
def test_frozen_parts_stay_and_the_others_are_trained(tiny_settings: SettingsOf, optim: str) -> None:
    settings = tiny_settings(freeze=FROZEN, optim=optim)
    before = build_model(settings, 0).state_dict()
    after = trained(settings)
    for name, weight in before.items():
        if name in after:  # the tied head is stored once
            assert torch.equal(weight, after[name]) == is_frozen(name), name
    num_trained = sum(not is_frozen(name) for name in after if not name.startswith("state "))
    assert len({name.split(".")[0] for name in after if name.startswith("state ")}) == num_trained


def test_a_resumed_run_is_the_same_to_the_last_bit(tiny_settings: SettingsOf, tmp_path: Path) -> None:
    changes = {"freeze": FROZEN, "save_steps": 3}
    unbroken = trained(tiny_settings(**changes))
    copy_at_step(tmp_path / "run", tmp_path / "killed", step=3)
    killed = tiny_settings(**changes, output_dir=str(tmp_path / "killed"), resume=True)
    assert_same(unbroken, trained(killed))
    with pytest.raises(ValueError, match="--freeze was "):
        trained(tiny_settings(save_steps=3, output_dir=str(tmp_path / "killed"), resume=True))


def test_steps_in_the_backward_pass_are_the_same(tiny_settings: SettingsOf, tmp_path: Path) -> None:
    changes = {"freeze": FROZEN, "max_grad_norm": 0.0}
    plain = trained(tiny_settings(**changes))
    other = tiny_settings(**changes, optimizer_in_backward=True, output_dir=str(tmp_path / "in backward"))
    assert_same(plain, trained(other))


def test_less_memory_is_expected(tiny_settings: SettingsOf) -> None:
    """At least gradient and two moments of each frozen parameter."""
    device, sizes = torch.device("cpu"), []
    for frozen in (None, ["model.layers.*"]):
        settings = tiny_settings(hidden_size=256, vocabulary="bytes", freeze=frozen)
        sizes.append(estimate_memory(settings.model_config(), settings, device, "no"))
    layers = sum(weight.numel() for name, weight in build_model(settings, 0).named_parameters() if ".layers." in name)
    assert sizes[0] - sizes[1] > 3 * 4 * layers


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("lm_head", {"model.embed_tokens.weight"}),  # one parameter, where the head is tied
        ("model.norm.weight", {"model.norm.weight"}),
        ("model.layers.1.mlp.up_proj", {"model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.bias"}),
        ("model.layers.[01].*.down_proj.bias", {f"model.layers.{layer}.mlp.down_proj.bias" for layer in (0, 1)}),
    ],
)
def test_patterns_name_modules_and_parameters(tiny_settings: SettingsOf, pattern: str, expected: set[str]) -> None:
    model = build_model(tiny_settings(), 0)
    freeze(model, [pattern])
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == expected


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "muon"])
@pytest.mark.parametrize("frozen", ["model.layers.*", "model.embed_*", "*norm*"])
def test_any_optimizer_takes_what_is_left(tiny_settings: SettingsOf, optim: str, frozen: str) -> None:
    assert trained(tiny_settings(freeze=[frozen], optim=optim, max_steps=3))


@pytest.mark.parametrize(
    ("patterns", "line"),
    [
        (["model.layer.0"], "--freeze model.layer.0 names no part of the model: give a name such as model.layers.0"),
        (["model.layers.7"], "--freeze model.layers.7 names no part of the model: give a name such as model.layers."),
        (["*"], r"--freeze \* leaves nothing to train: name fewer parts"),
    ],
)
def test_mistakes_are_one_line(tiny_settings: SettingsOf, patterns: list[str], line: str) -> None:
    settings = tiny_settings(freeze=patterns)
    with pytest.raises(ValueError, match=line) as caught:
        train(settings)
    assert "\n" not in str(caught.value)
    assert not Path(settings.output_dir).exists()
