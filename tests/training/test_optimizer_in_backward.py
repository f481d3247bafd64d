"""Proves steps taken in the backward pass: the same run to the last bit, without gradients left, refused where not."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.training import optimizer_in_backward
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.optimizer_in_backward import StepsInBackward, refuse_where_impossible
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, without_speed
from tests.training.runs_in_one_world import copy_at_step


UNCLIPPED = {"max_grad_norm": 0.0, "save_steps": 3}
IN_BACKWARD = {"optimizer_in_backward": True}


def trained(settings: TrainingSettings) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Return the history of a run, and its last weights and optimizer state."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    train(settings)
    folder = Path(settings.output_dir)
    events = [without_speed(row) for row in rows(folder, "step") + rows(folder, "evaluation")]
    checkpoint = folder / "checkpoints" / f"step-{settings.max_steps:08d}"
    weights, moments = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "optimizer"))
    return events, weights | {f"state {name}": value for name, value in moments.items()}


def assert_same(one: tuple, other: tuple) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"optim": "adamw_torch", "gradient_checkpointing": True, "dropout": 0.1}, marks=pytest.mark.nightly
        ),
        # Where the smaller side is 16 the bits may differ, see the next test.
        {"optim": "muon", "hidden_size": 32},
        {"tie_word_embeddings": False, "mixed_precision": "bf16"},
    ],
    ids=["fused", "plain, checkpointed", "muon", "untied, bf16"],
)
def test_the_run_is_the_same_to_the_last_bit(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path, changes: dict
) -> None:
    plain = trained(tiny_settings(**UNCLIPPED, **changes))
    other = {"output_dir": str(tmp_path / "in backward")}
    assert_same(plain, trained(tiny_settings(**UNCLIPPED, **changes, **IN_BACKWARD, **other)))
    assert plain[0][0]["grad_norm"] > 0.1


def test_small_matrices_of_muon_are_the_same_to_the_rounding(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    plain = trained(tiny_settings(**UNCLIPPED, optim="muon"))
    other = {"output_dir": str(tmp_path / "in backward"), **IN_BACKWARD}
    found = trained(tiny_settings(**UNCLIPPED, optim="muon", **other))
    assert all((value - found[1][name]).abs().max() < 1e-4 for name, value in plain[1].items())
    assert [row["loss"] for row in found[0][:6]] == pytest.approx([row["loss"] for row in plain[0][:6]], abs=1e-4)


def test_a_run_may_go_on_with_it(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    unbroken = trained(tiny_settings(**UNCLIPPED))
    copy_at_step(tmp_path / "run", tmp_path / "killed", step=3)
    other = {"output_dir": str(tmp_path / "killed"), "resume": True}
    assert_same(unbroken, trained(tiny_settings(**UNCLIPPED, **IN_BACKWARD, **other)))
    assert rows(tmp_path / "killed", "run")[-1]["resumed_at_step"] == 3


def test_gradients_do_not_stay(tiny_config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the control: hooks that free nothing are noticed."""
    counts = {}
    for name in ("freed", "kept"):
        torch.manual_seed(0)
        model = GPTScratchForCausalLM(tiny_config)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        alive = []

        def step(self: StepsInBackward, parameter: torch.Tensor) -> None:
            pass

        if name == "kept":
            monkeypatch.setattr(optimizer_in_backward.StepsInBackward, "step", step)
        StepsInBackward(model, optimizer)
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(
                lambda _, parameters=parameters, alive=alive: alive.append(sum(p.grad is not None for p in parameters))
            )
        ids = torch.arange(16).view(2, 8)
        model(ids, labels=ids).loss.backward()
        counts[name] = max(alive)
    assert counts == {"freed": 0, "kept": len(parameters)}


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "--max_grad_norm 0"),
        ({"max_grad_norm": 0.0, "gradient_accumulation_steps": 2}, "--gradient_accumulation_steps 1"),
        ({"max_grad_norm": 0.0, "on_bad_step": "skip"}, "--on_bad_step stop"),
        ({"max_grad_norm": 0.0, "spike_threshold": 6.0}, "--spike_threshold 0"),
    ],
)
def test_what_needs_the_whole_gradient_is_refused(changes: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=f"--optimizer_in_backward .*, or give {advice}$"):
        TrainingSettings(**IN_BACKWARD, **changes)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"distributed_type": DistributedType.MULTI_CPU, "num_processes": 2}, "several processes .here 2."),
        # One process, but in DDP: steps would be taken twice.
        ({"distributed_type": DistributedType.MULTI_CPU}, "several processes .here 1."),
        ({"distributed_type": DistributedType.FSDP}, "several processes .here 1."),
        ({"mixed_precision": "fp16"}, "--mixed_precision fp16"),
    ],
)
def test_process_groups_and_fp16_are_refused(changes: dict, what: str) -> None:
    plain = {"distributed_type": DistributedType.NO, "num_processes": 1, "mixed_precision": "bf16"}
    refuse_where_impossible(SimpleNamespace(**plain))
    with pytest.raises(ValueError, match=f"cannot be used with .*{what}: leave it out"):
        refuse_where_impossible(SimpleNamespace(**plain | changes))
