"""Proves the command line: recipe, file and flags in this order, each mistake in one line, recipes valid."""

import os
import threading
from dataclasses import fields
from pathlib import Path

import pytest

from hf_gpt_scratch.training.command_line import (
    RECIPES,
    build_parser,
    parse_settings,
    read_settings_file,
    settings_json,
)
from hf_gpt_scratch.training.settings import TrainingSettings


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


def test_help_shows_each_setting_once_in_a_group_with_a_title() -> None:
    shown: dict[str, list[str]] = {}
    for line in build_parser().format_help().splitlines():
        if line.endswith(":") and not line.startswith(" "):
            group = shown.setdefault(line.removesuffix(":"), [])
        elif line.startswith("  -"):
            group.append(line.split()[0].rstrip(","))
    assert shown.pop("options") == ["-h", "--recipe", "--config"]
    assert len(shown) == 8
    assert all(4 <= len(flags) <= 18 for flags in shown.values()), shown
    flags = sum(shown.values(), [])
    assert sorted(flags) == sorted(
        [f"--{item.name}" for item in fields(TrainingSettings)]
        + [f"--no_{item.name}" for item in fields(TrainingSettings) if item.default is True]
    )


def test_each_flag_is_read_in_both_spellings() -> None:
    parser = build_parser()
    for action in parser._actions:
        if action.dest not in ("help", "recipe") and action.nargs != 0:  # not those without a value
            word = list(action.choices)[-1] if action.choices else "true" if action.const is True else "7"
            name = action.option_strings[0]
            expected = vars(parser.parse_args([name, word]))
            assert expected[action.dest] in (True, 7, 7.0, "7", ["7"], word)
            dashed = f"--{name[2:].replace('_', '-')}"
            assert vars(parser.parse_args([dashed, word])) == vars(parser.parse_args([f"{dashed}={word}"])) == expected


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
        (["--lerning_rate", "1"], "unknown flag --lerning_rate; did you mean --learning_rate"),
        (["--hidden_size", "wide"], "must be a whole number, got 'wide'"),
        (["--num_train_epochs", "0.0001"], "num_train_epochs: must be a whole number, got '0.0001'"),
        (["--learning_rate", "fast"], "learning_rate: must be a number, got 'fast'"),
        (["--resume", "maybe"], "--resume: must be true or false, got 'maybe'"),
        (["--recipe", "tutoral"], "tutoral is unknown; did you mean tutorial"),
        (["--optim", "sgd"], "invalid choice: 'sgd'"),
        (["--seed"], "expected one argument"),
        (["--learning", "1"], "unknown flag --learning"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--output_dir", ""], "--output_dir is empty"),
        (["--train_file", ""], "--train_file is empty"),
        (["--train_file", "a.txt", ""], "--train_file is empty"),
        (["--validation_file", ""], "--validation_file is empty"),
        (["--train_data", ""], "--train_data is empty"),
        (["--model_name_or_path", ""], "--model_name_or_path is empty"),
        (["--no_chunked_loss", "--chunked_loss"], "--chunked_loss and --no_chunked_loss contradict each other"),
        (["--qkv-bias=true", "--no-qkv-bias"], "--qkv_bias=true and --no_qkv_bias contradict each other"),
    ],
)
def test_wrong_command_lines_are_refused_in_one_line(arguments: list[str], reason: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as caught:
        parse_settings(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("fast_dropout: false", "unknown setting 'fast_dropout'; it is called cpu_speedups now"),
        ("lerning_rate: 1", "unknown setting 'lerning_rate'; did you mean learning_rate"),
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
        (["--recipe", "tutorial", "--qkv_bias"], {"qkv_bias": True}),
        (["--recipe", "char-small", "--num_train_epochs", "3"], {"warmup_steps": None}),
        (["--recipe", "tutorial", "--num_train_epochs", "3"], {"warmup_steps": 0}),
        (["--recipe", "char-small", "--num_train_epochs", "3", "--warmup_steps", "7"], {"warmup_steps": 7}),
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
