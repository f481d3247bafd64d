"""Proves the settings: each rule refuses, all problems come in one line, recipes are valid, and resume compares."""

import json
import os
import threading
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from hf_gpt_scratch.training.command_line import RECIPES, parse_settings, read_settings_file, settings_json
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_valid_settings(recipe: str) -> None:
    settings = parse_settings(["--recipe", recipe])
    values = read_settings_file(RECIPES[recipe])
    assert len(values) > 10
    for name, value in values.items():
        is_exponent = isinstance(value, str) and isinstance(getattr(settings, name), float)  # YAML's 4e-4 is a text
        assert getattr(settings, name) == (float(value) if is_exponent else value), name


def test_flags_override_the_file_and_the_file_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("recipe: tutorial\nlearning_rate: 5e-4\nnum_train_epochs: 3\ntrain_file: [a b.txt, c.txt]\n")
    settings = parse_settings(["--config", str(path), "--num-train-epochs", "2", "--no_qkv_bias"])
    assert settings.hidden_size == 768  # recipe
    assert settings.learning_rate == 5e-4  # file; YAML alone reads this as a text
    assert settings.train_file == ["a b.txt", "c.txt"]
    assert settings.num_train_epochs == 2  # flag
    assert settings.qkv_bias is False


@pytest.mark.parametrize("recipe", ["5", "tutoral"])
def test_unknown_recipe_of_a_file_is_named(tmp_path: Path, recipe: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"recipe: {recipe}\n")
    with pytest.raises(ValueError, match=f"--recipe {recipe} is unknown"):
        parse_settings(["--config", str(path)])


def test_written_settings_read_back_the_same(tmp_path: Path) -> None:
    settings = parse_settings(["--recipe", "tutorial", "--train_file", "x.txt", "--sample_prompt", ""])
    path = tmp_path / "settings.json"
    path.write_text(settings_json(settings))
    assert parse_settings(["--config", str(path)]) == settings


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--lerning_rate", "1"], "--lerning_rate is no flag; did you mean --learning_rate"),
        (["--hidden_size", "wide"], "invalid int value: 'wide'"),
        (["--recipe", "tutoral"], "tutoral is unknown; did you mean tutorial"),
        (["--optim", "sgd"], "invalid choice: 'sgd'"),
        (["--seed"], "expected one argument"),
        (["--learning", "1"], "--learning is no flag"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--output_dir", ""], "--output_dir is empty"),
        (["--train_file", ""], "--train_file is empty"),
        (["--train_file", "a.txt", ""], "--train_file is empty"),
        (["--validation_file", ""], "--validation_file is empty"),
        (["--train_data", ""], "--train_data is empty"),
        (["--model_name_or_path", ""], "--model_name_or_path is empty"),
    ],
)
def test_wrong_command_lines_are_refused_in_one_line(arguments: list[str], reason: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as caught:
        parse_settings(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("lerning_rate: 1", "'lerning_rate' is no setting; did you mean learning_rate"),
        ("eval_steps: [1, 2]", r"eval_steps takes one value, got \[1, 2\]"),
        ("recipe: [tutorial]", r"recipe takes one value, got \['tutorial'\]"),
        ("train_file: {a: b}", r"train_file takes one value, got \{'a': 'b'\}"),
        ("a: [", "is not valid YAML or JSON"),
        ("- 1", "must hold lines of the form setting: value"),
        ("recipe: {tutorial: 1}", "recipe takes one value"),
    ],
)
def test_wrong_settings_files_are_refused_in_one_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_settings_file(path)
    assert "\n" not in str(caught.value)


def test_folder_is_no_settings_file_and_a_pipe_is_one(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=f"--config {tmp_path} is a folder: name the file in it"):
        parse_settings(["--config", str(tmp_path)])
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["seed: 7"])
    writer.start()
    assert parse_settings(["--config", str(tmp_path / "pipe")]).seed == 7
    writer.join()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"num_attention_heads": 6, "min_learning_rate": 1.5e-4, "qkv_bias": True, "vocabulary": "gpt2"}),
        (["--hidden_size", "1024"], {"num_attention_heads": 16}),
        (["--hidden_size", "96"], {"num_attention_heads": 6}),
        (["--hidden_size", "16"], {"num_attention_heads": 1}),
        (["--hidden_size", "128"], {"num_attention_heads": 2}),
        (["--learning_rate", "1e-5"], {"min_learning_rate": 1e-6}),
        (["--learning_rate", "3e-4"], {"min_learning_rate": 3e-5}),
        (["--learning_rate", "1e-5", "--min_learning_rate", "1e-5"], {"min_learning_rate": 1e-5}),
        (
            ["--learning_rate", "1e-5", "--min_learning_rate", "1e-3", "--lr_scheduler_type", "constant"],
            {"learning_rate": 1e-5},
        ),
        (["--recipe", "char-small", "--learning_rate", "1e-5"], {"min_learning_rate": 1e-6}),
        (["--recipe", "gpt2-124m", "--learning_rate", "1e-5"], {"min_learning_rate": 0.0}),
        (["--recipe", "gpt2-124m", "--max_steps", "8"], {"warmup_steps": 4}),
        (["--recipe", "gpt2-124m", "--max_steps", "5000"], {"warmup_steps": 700}),
        (["--recipe", "char-small", "--num_train_epochs", "3"], {"max_steps": -1, "num_train_epochs": 3}),
        (["--recipe", "gpt2-124m", "--hidden_size", "1000"], {"num_attention_heads": 20}),
        (["--recipe", "gpt2-124m", "--hidden_size", "384"], {"num_attention_heads": 12}),
        (["--recipe", "gpt2-124m", "--train_file", "my.txt"], {"train_file": ["my.txt"], "validation_file": None}),
        (["--recipe", "gpt2-124m", "--train_data", "d"], {"train_data": "d", "train_file": None}),
        (["--recipe", "gpt2-124m", "--sample_text", "story"], {"train_file": None, "validation_file": None}),
        (["--recipe", "tutorial", "--validation_file", "v"], {"sample_text": "verdict", "validation_file": ["v"]}),
        (["--recipe", "tutorial", "--model_name_or_path", "m"], {"hidden_size": None, "weight_init": "gpt2"}),
        (["--recipe", "char-small", "--model_name_or_path", "m"], {"vocabulary": None, "num_hidden_layers": None}),
        (["--qkv_bias", "false"], {"qkv_bias": False}),
        (["--no-tie-word-embeddings"], {"tie_word_embeddings": False}),
        (["--no_qkv_bias", "--qkv_bias"], {"qkv_bias": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_defaults_follow_the_settings_that_they_depend_on(arguments: list[str], expected: dict) -> None:
    settings = parse_settings(arguments)
    assert {name: getattr(settings, name) for name in expected} == expected


def test_half_of_a_recipes_pair_of_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="--validation_file replaces both texts of the recipe: give --train_file"):
        parse_settings(["--recipe", "gpt2-124m", "--validation_file", "mine.txt"])


def test_flags_say_in_another_way_what_a_file_says(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("train_file: [a.txt]\nvalidation_file: [v.txt]\nmax_steps: 50\n")
    settings = parse_settings(["--config", str(path), "--train_data", "tokens", "--num_train_epochs", "2"])
    assert (settings.train_file, settings.train_data) == (None, "tokens")
    assert settings.validation_file == ["v.txt"]  # the user's own, unlike a recipe's
    assert (settings.max_steps, settings.num_train_epochs) == (-1, 2)


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
