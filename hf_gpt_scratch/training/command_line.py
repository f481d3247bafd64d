"""Read settings from a recipe, a YAML or JSON file and flags; each overrides the one before."""

import argparse
import difflib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from hf_gpt_scratch.runtime.cli import OneLineParser, refuse_unused, snake_case
from hf_gpt_scratch.runtime.launching import settings_of_launcher
from hf_gpt_scratch.training.settings import ARCHITECTURE, CHOSEN_BY_MINUTES, RATES, TrainingSettings


# Settings of known runs, each a YAML file; the command line overrides them.
RECIPES = {path.stem: path for path in sorted(Path(str(files("hf_gpt_scratch") / "recipes")).glob("*.yaml"))}

TRAINING_TEXT = {"train_file", "train_data", "sample_text"}  # settings that name it
LENGTH = {"num_train_epochs", "max_steps", "minutes"}  # settings that decide the number of steps
# Settings of version 0.1.0 that have another name, as settings.json of its runs has them.
RENAMED = {"fast_dropout": "; it is called cpu_speedups now"}
DERIVED_BOOLS = ("qkv_bias", "tie_word_embeddings")


class SettingsParser(OneLineParser, HfArgumentParser):
    """A flag for each setting; mistakes are reported in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for kind, what in ((int, "a whole number"), (float, "a number"), (string_to_bool, "true or false")):
            self.register("type", kind, parser_of(kind, what))

    def add_argument_group(self, *args: Any, **kwargs: Any) -> argparse._ArgumentGroup:
        """Add a group of flags; HfArgumentParser adds one for each dataclass that names it."""
        group = SettingsGroup(self, *args, **kwargs)
        self._action_groups.append(group)
        return group


class SettingsGroup(argparse._ArgumentGroup):
    """A group of the flags that --help lists."""

    def add_argument(self, *names: Any, may_change_on_resume: bool = False, **kwargs: Any) -> argparse.Action:
        """Add a flag; HfArgumentParser gives both spellings, and metadata of a field that argparse does not know."""
        if kwargs.get("action") == "store_false":  # it gives them the help of the setting
            kwargs |= {"help": f"turn {kwargs['dest']} off", "default": argparse.SUPPRESS}
        return super().add_argument(*dict.fromkeys(map(snake_case, names)), **kwargs)


def parser_of(kind: Callable[[str], Any], what: str) -> Callable[[str], Any]:
    """Return a type for options whose mistakes are said as those of `number` are."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except (ValueError, argparse.ArgumentTypeError):
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None

    return parse


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion of the known name nearest to a misspelled one, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read settings from a YAML or JSON file (JSON is YAML).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be parsed, or holds an unknown setting; the line suggests the nearest one.
    """
    if not path.exists():
        raise FileNotFoundError(f"--config {path} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"--config {path} is a folder: name the file in it, such as settings.json")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not valid YAML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} must hold lines of the form setting: value")
    known = {item.name for item in fields(TrainingSettings)} | {"recipe"}
    problems = [
        f"unknown setting {key!r}{RENAMED.get(str(key)) or nearest(str(key), known)}"
        for key in values
        if key not in known
    ]
    lists = {name for name, hint in get_type_hints(TrainingSettings).items() if list[str] in get_args(hint)}
    problems += [
        f"{key} takes one value, got {value}"
        for key, value in values.items()
        if key in known and isinstance(value, dict if key in lists else dict | list)
    ]
    if problems:
        raise ValueError(f"--config {path}: {', '.join(problems)}")
    return values


def as_flags(values: dict[str, Any]) -> list[str]:
    """Convert settings to flags, so that one parser checks all sources; YAML alone would read 4e-4 as a string."""
    flags: list[str] = []
    for name, value in values.items():
        if value is not None:
            words = value if isinstance(value, list) else [value]
            # An empty --flag= keeps an empty string; lists take their words one by one.
            flags += [f"--{name}", *map(str, words)] if isinstance(value, list) else [f"--{name}={value}"]
    return flags


def parse_settings(arguments: Sequence[str], prog: str | None = None) -> TrainingSettings:
    """Parse the command line of training.

    Raises:
        ValueError: an unknown flag, an impossible value or contradicting ones; one line.
        FileNotFoundError: `--config` names no file.
    """
    first = OneLineParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--config", type=Path)
    sources, flags = first.parse_known_args(arguments)
    file_values = read_settings_file(sources.config) if sources.config else {}
    recipe = sources.recipe or file_values.pop("recipe", None)
    if recipe is not None and str(recipe) not in RECIPES:
        raise ValueError(f"--recipe {recipe} is unknown{nearest(str(recipe), RECIPES)}; there is {', '.join(RECIPES)}")
    recipe_values = read_settings_file(RECIPES[recipe]) if recipe else {}
    parser = build_parser(prog)
    by_recipe, by_file, by_flags = (
        given(parser, words) for words in (as_flags(recipe_values), as_flags(file_values), flags)
    )
    by_user = without_replaced(by_file, by_flags) | by_flags
    by_user |= settings_of_launcher(by_user, lambda flag: given(parser, [flag]))
    settings = TrainingSettings(**adapted_recipe(without_replaced(by_recipe, by_user), by_user) | by_user)
    if settings.minutes is not None and settings.model_name_or_path is None and not recipe and not settings.choose:
        settings = replace(settings, choose=left_open(by_user))
    if {"minutes", "num_train_epochs"} <= set(by_flags):
        raise ValueError("--minutes and --num_train_epochs both decide the steps: give one")
    named = argparse.Namespace(**dict.fromkeys(("sample_text", "train_split")) | by_flags)
    for text in ("train_file", "train_data"):
        if text in by_flags:
            refuse_unused(named, ["--sample_text"], f"with --{text}")
    for text in ("validation_file", "train_data"):
        if getattr(settings, text) is not None:
            refuse_unused(named, ["--train_split"], f"with --{text}")
    return settings


def build_parser(prog: str | None = None) -> SettingsParser:
    """Build the parser of all flags."""
    parser = SettingsParser(
        TrainingSettings.__bases__[::-1],
        prog=prog,
        usage="%(prog)s [-h] [--recipe RECIPE] [--config CONFIG] [flags]",
        description="Pretrain a GPT on text. Without flags: a small one on the bundled story, in minutes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="settings of a known run, to start from; a YAML file in hf_gpt_scratch/recipes",
    )
    parser.add_argument("--config", help="YAML or JSON file with any of these settings; flags override it")
    for action in list(parser._actions):
        # HfArgumentParser has `--no_x` only for settings that are true by default, not for derived ones.
        if action.dest in DERIVED_BOOLS:
            action.nargs, action.const = "?", True
            parser.add_argument(
                f"--no_{action.dest}",
                f"--no-{action.dest.replace('_', '-')}",
                action="store_false",
                dest=action.dest,
                default=None,
                help=argparse.SUPPRESS,
            )
    return parser


def given(parser: OneLineParser, words: Sequence[str]) -> dict[str, Any]:
    """Parse flags into the settings that they name, without any default.

    Raises:
        ValueError: an unknown flag, a value that cannot be parsed, or both `--x` and `--no_x`.
    """
    known = [option for action in parser._actions for option in action.option_strings]
    nothing = argparse.Namespace(**{action.dest: MISSING for action in parser._actions})
    found, unknown = parser.parse_known_args(words, nothing)
    if unknown:
        raise ValueError(f"unknown flag {unknown[0]}{nearest(unknown[0], known)}; --help lists all flags")
    names = {word.partition("=")[0].removeprefix("--"): word for word in words if word[:2] == "--"}
    if both := [name for name in names if f"no_{name}" in names]:
        raise ValueError(f"{names[both[0]]} and {names['no_' + both[0]]} contradict each other: give one")
    return {name: value for name, value in vars(found).items() if value is not MISSING}


def without_replaced(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Drop the settings that those above them replace by others: the training text, the length of the run."""
    replaced = set()
    if TRAINING_TEXT & set(upper):
        replaced |= {"train_file", "train_data"}
    if LENGTH & set(upper):
        replaced |= LENGTH - {"num_train_epochs"}  # the others come before it
    return {name: value for name, value in lower.items() if name not in replaced}


def adapted_recipe(recipe: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    """Adapt a recipe to those settings of the user that it depends on.

    Raises:
        ValueError: of the recipe's pair of texts, only the one for validation is named.
    """
    recipe = dict(recipe)
    if TRAINING_TEXT & set(user):
        recipe.pop("validation_file", None)
    elif "validation_file" in user and "validation_file" in recipe:
        raise ValueError("--validation_file replaces both texts of the recipe: give --train_file or --train_data too")
    if "model_name_or_path" in user:
        for name in (*ARCHITECTURE, "vocabulary", "weight_init"):
            recipe.pop(name, None)
    if "learning_rate" in user and "min_learning_rate" in recipe:
        lowest = recipe["min_learning_rate"] / recipe["learning_rate"] * user["learning_rate"]
        recipe["min_learning_rate"] = float(f"{lowest:.12g}")
    if user.get("max_steps", 0) > 0 and "warmup_steps" in recipe:
        recipe["warmup_steps"] = min(recipe["warmup_steps"], user["max_steps"] // 2)
    elif {"num_train_epochs", "minutes"} & set(user) and recipe.get("warmup_steps"):
        del recipe["warmup_steps"]  # how many steps that makes is not known yet
    heads = recipe.get("num_attention_heads", 1)
    if "hidden_size" in user and user["hidden_size"] % heads:
        del recipe["num_attention_heads"]
    return recipe


def left_open(by_user: dict[str, Any]) -> list[str]:
    """List the settings that minutes choose, because the user gives neither them nor what decides them."""
    if by_user.get("choose") is not None:
        return by_user["choose"]
    given = {name for name, value in by_user.items() if value is not None}
    if given & set(RATES):
        given |= set(RATES)
    if "optimizer_in_backward" in given:
        given.add("gradient_accumulation_steps")  # it takes one micro-batch
    if "train_data" in given:
        given.add("vocabulary")  # that of the tokens
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        given.add("mixed_precision")  # the launcher's
    return [name for name in CHOSEN_BY_MINUTES if name not in given]


def settings_json(settings: TrainingSettings) -> str:
    """Return the settings as the text of a file that `--config` reads."""
    return json.dumps(settings.to_dict(), indent=2) + "\n"
