"""Proves that --help, and a mistake in the settings of a run, are answered without importing torch."""

import subprocess
import sys
from pathlib import Path

import pytest


SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.py"))
TRAIN = next(path for path in SCRIPTS if path.name == "train.py")


def run_and_list_imports(path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a script as typed; Python itself lists on stderr what is imported."""
    command = [sys.executable, "-X", "importtime", path, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    rows = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return process, {row.rpartition("|")[2].strip() for row in rows}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help(path):
    process, imported = run_and_list_imports(path, "--help")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage:")
    assert "argparse" in imported
    assert "torch" not in imported


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--learning_rat", "1"), "did you mean --learning_rate"),
        (("--dropout", "1.5"), "--dropout must be at least 0 and below 1"),
        (("--config", "nowhere.yaml"), "nowhere.yaml does not exist"),
        (("--vocabulary", "nowhere"), "the vocabulary nowhere is neither gpt2, bytes nor a folder"),
    ],
)
def test_mistakes_in_settings(arguments, words):
    process, imported = run_and_list_imports(TRAIN, *arguments)
    assert process.returncode == 1
    assert words in process.stderr
    assert "torch" not in imported


@pytest.mark.parametrize("script", ["generate.py", "evaluate.py", "plot_decoding.py", "demo.py"])
def test_file_for_a_model(script):
    process, imported = run_and_list_imports(TRAIN.with_name(script), "--model", __file__)
    assert process.returncode == 1
    assert f"--model: {__file__} is a file: name its folder" in process.stderr
    assert "torch" not in imported


def test_what_needs_a_model_does_import_it(tmp_path):
    """The control: a rule that only the config of the model has."""
    process, imported = run_and_list_imports(TRAIN, "--hidden_act", "no-such", "--output_dir", str(tmp_path / "run"))
    assert process.returncode == 1
    assert "torch" in imported
