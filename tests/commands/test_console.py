"""Proves `hf-gpt-scratch` as users type it: each word reaches its command, and a mistake is one line."""

import re
import subprocess
import sys

import pytest

from hf_gpt_scratch.commands.console import COMMANDS


def start(*words: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run the command; Python itself lists on stderr what is imported."""
    command = [sys.executable, "-X", "importtime", "-m", "hf_gpt_scratch", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    rows = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    result.stderr = "\n".join(line for line in result.stderr.splitlines() if line not in rows)
    return result, {row.rpartition("|")[2].strip() for row in rows}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_names_it_and_imports_no_torch(name: str) -> None:
    result, imported = start(*name.split(), "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: hf-gpt-scratch {name} [-h]")
    assert "torch" not in imported
    flags = result.stdout.partition("\noptions:\n")[2].partition("\n\n")[0]
    assert len(re.findall(r"^  --", flags, flags=re.MULTILINE)) <= 6, "many flags are in groups with titles"


def test_help_of_all_lists_them_and_imports_none() -> None:
    result, imported = start("--help")
    assert all(re.search(rf"\n    {name}\s", result.stdout) for name in {*COMMANDS, "plot"} if " " not in name)
    assert not {name for name in imported if name.startswith("hf_gpt_scratch.commands.")} - {
        "hf_gpt_scratch.commands.console"
    }


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "error: the following arguments are required: COMMAND; --help lists all flags"),
        (["trian"], "error: argument COMMAND: invalid choice: 'trian' (choose from "),
        (["plot"], "error: the following arguments are required: KIND; --help lists all flags"),
        (["plot", "weights"], "error: argument KIND: invalid choice: 'weights' (choose from "),
        (["evaluate", "--model", "m"], "error: the following arguments are required: --file"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str) -> None:
    result, _ = start(*words)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(line)
    assert "\n" not in result.stderr
