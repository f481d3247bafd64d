"""Settings from a recipe, a YAML or JSON file and flags; each overrides the one before."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_gpt_scratch.cli import OneLineParser

from .settings import TrainingSettings


# Settings that make a known run, each a YAML file; the command line can still change each of them.
RECIPES = {path.stem: path for path in sorted(Path(str(files("hf_gpt_scratch") / "recipes")).glob("*.yaml"))}


class SettingsParser(OneLineParser, HfArgumentParser):
    """A flag for each setting; mistakes are reported in one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name nearest to a misspelled one, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read settings from a YAML or JSON file (JSON is YAML).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be parsed, or holds a key that is no setting; the line suggests the nearest one.
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
    problems = [f"{key!r} is no setting{nearest(str(key), known)}" for key in values if key not in known]
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
    """Write settings as flags, so that one parser checks all sources; YAML alone would read 4e-4 as a text."""
    flags: list[str] = []
    for name, value in values.items():
        if value is not None:
            words = value if isinstance(value, list) else [value]
            # An empty --flag= keeps the value of an empty text; lists take their words one by one.
            flags += [f"--{name}", *map(str, words)] if isinstance(value, list) else [f"--{name}={value}"]
    return flags


def parse_settings(arguments: Sequence[str]) -> TrainingSettings:
    """Parse the command line of `scripts/train.py`.

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
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"--recipe {recipe} is unknown{nearest(recipe, RECIPES)}; there is {', '.join(RECIPES)}")

    parser = SettingsParser(
        TrainingSettings,
        description="Pretrain a GPT on text. Without flags: a small one on the bundled story, in minutes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="settings of a known run, to start from; a YAML file in hf_gpt_scratch/recipes",
    )
    parser.add_argument("--config", help="YAML or JSON file with any of these settings; flags override it")
    recipe_values = read_settings_file(RECIPES[recipe]) if recipe else {}
    all_flags = [*as_flags(recipe_values), *as_flags(file_values), *flags]
    _, unknown = parser.parse_known_args(all_flags)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ValueError(f"{unknown[0]} is no flag{nearest(unknown[0], known)}; --help lists all flags")
    settings, *_ = parser.parse_args_into_dataclasses(all_flags, look_for_args_file=False)
    return settings


def settings_json(settings: TrainingSettings) -> str:
    """The settings as a file that `--config` reads back."""
    return json.dumps(settings.to_dict(), indent=2) + "\n"
