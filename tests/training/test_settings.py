"""Proves the settings: each rule refuses, all problems come in one line, recipes are valid, and resume compares."""

import json
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from hf_gpt_scratch.training.command_line import parse_settings, settings_json
from hf_gpt_scratch.training.settings import ARCHITECTURE, TrainingSettings


def test_all_problems_are_reported_in_one_line() -> None:
    with pytest.raises(ValueError, match="hidden_size") as caught:
        TrainingSettings(
            hidden_size=50, num_attention_heads=4, dropout=1.0, learning_rate=-1, block_size=4096, train_split=1.5
        )
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "--hidden_size 50 is not a multiple of --num_attention_heads 4",
        "--dropout must be at least 0 and below 1, got 1.0",
        "--learning_rate must be at least 0, got -1",
        "--block_size 4096 is longer than the context of the model, --max_position_embeddings 128",
        "--train_split must be above 0 and below 1, got 1.5",
    ):
        assert part in message


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 0},
        {"num_train_epochs": 0},
        {"max_steps": 0},
        {"max_steps": -2},
        {"dropout": float("nan")},
        {"adam_beta2": 1.0},
        {"max_grad_norm": -0.1},
        {"min_learning_rate": 1.0},
        {"max_steps": 5, "warmup_steps": 5},
        {"push_to_hub": "no-user"},
        {"push_to_hub": "me/x", "hub_revision": "a..b"},
        {"push_steps": 5},
        {"push_steps_revision": "main", "push_to_hub": "me/x", "push_steps": 5},
        {"optim": "sgd"},
        {"seed": 2**64 - 1},
        {"seed": 2**32},
        {"ddp_timeout": 10**14},
        {"push_timeout": 10**14},
        {"max_position_embeddings": 2**63},
        {"peak_flops": float("inf")},
        {"hidden_act": "unheard-of"},
        {"license": "not a licence!"},
        {"license": "a\nb: c"},
        {"model_name_or_path": __file__},
    ],
)
def test_impossible_values_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        TrainingSettings(**changes)


@pytest.mark.parametrize(
    "name",
    ["train_file", "validation_file", "train_data", "output_dir", "model_name_or_path", "report_to", "license"]
    + ["push_to_hub", "hub_revision", "push_steps_revision", "hidden_act"],
)
def test_empty_value_is_refused_wherever_it_comes_from(name: str, tmp_path: Path) -> None:
    """As a path it would be the current folder, and no part of it may be left out in silence."""
    path = tmp_path / "settings.yaml"
    values = [""]
    if get_type_hints(TrainingSettings)[name] == list[str] | None:
        values = [[""], ["a.txt", ""]]
    for value in values:
        path.write_text(json.dumps({name: value}))
        for arguments in (["--config", str(path)], [f"--{name}", *([value] if isinstance(value, str) else value)]):
            with pytest.raises(ValueError, match=f"--{name} is empty: give a value"):
                parse_settings(arguments)


def test_model_config_takes_every_setting_of_the_model() -> None:
    settings = TrainingSettings(
        hidden_size=48, num_attention_heads=4, qkv_bias=False, tie_word_embeddings=False, dropout=0.3
    )
    config = settings.model_config()
    shared = {item.name for item in fields(settings)} & config.to_dict().keys()
    assert shared == {*ARCHITECTURE, "dropout"}
    assert all(getattr(config, name) == getattr(settings, name) for name in shared)


@pytest.mark.parametrize(("num_steps", "warmup"), [(200, 20), (40, 20), (39, 19), (8, 4), (1, 0)])
def test_warm_up_is_half_of_a_short_run_at_most(num_steps: int, warmup: int) -> None:
    assert TrainingSettings().with_num_steps(num_steps).warmup_steps == warmup
    assert TrainingSettings(warmup_steps=0).with_num_steps(num_steps).warmup_steps == 0
    with pytest.raises(ValueError, match=f"--warmup_steps 300 leaves none of the {num_steps} steps"):
        TrainingSettings(warmup_steps=300).with_num_steps(num_steps)


def test_differences_name_what_would_change_the_run() -> None:
    saved = json.loads(settings_json(TrainingSettings()))
    assert TrainingSettings().differences(saved) == []
    assert TrainingSettings(learning_rate=5e-4, min_learning_rate=1.5e-4).differences(saved) == [
        "--learning_rate was 0.0015, is 0.0005"
    ]
    assert TrainingSettings(output_dir="elsewhere", save_steps=7, resume=True).differences(saved) == []
    changed = TrainingSettings(per_device_train_batch_size=4, gradient_accumulation_steps=3, spike_threshold=6.0)
    assert changed.differences(saved) == []


def test_context_of_a_base_model_is_known_once_it_is_read() -> None:
    assert TrainingSettings(max_position_embeddings=64).window_size == 64
    with pytest.raises(ValueError, match="the context of some/model is not known before it is read"):
        TrainingSettings(model_name_or_path="some/model").window_size  # noqa: B018
