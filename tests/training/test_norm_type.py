"""Proves that a hyperparameter added to the model can be trained, saved and loaded by remote code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.fresh_interpreter import run
from tests.training.histories import step_losses


@pytest.mark.commands
def test_a_model_with_rmsnorm_is_trained_saved_and_loaded_without_the_package(
    launch: Callable, short_text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*TINY, "--train_file", short_text, "--output_dir", folder, "--max_steps", 6, "--norm_type", "rmsnorm"]
    result = launch("train.py", *arguments, launcher=["--cpu"])
    assert result.returncode == 0, result.stderr
    assert json.loads((folder / "model" / "config.json").read_text())["norm_type"] == "rmsnorm"
    losses = step_losses(folder)
    assert losses[-1] < losses[0]

    call = {"auto_class": "AutoModelForCausalLM", "input_ids": [[1, 2, 3]]}
    call |= {"path": str(folder / "model"), "output": "loaded"}
    loaded = run(tmp_path / "home", {"load": ("load_model", call)}).returned("load")["loading_info"]
    assert loaded["missing_keys"] == []
    assert loaded["unexpected_keys"] == []

    refused = launch(
        "convert_gpt2.py", "--from-dir", folder / "model", "--export-stock", "--output", tmp_path / "stock"
    )
    assert refused.returncode == 1
    assert "norm_type is 'rmsnorm'" in refused.stderr
    assert "\n" not in refused.stderr.strip()


def test_readme_shows_the_lines_that_it_took(project_root: Path) -> None:
    readme = (project_root / "README.md").read_text(encoding="utf-8")
    diff = readme.partition("```diff\n")[2].partition("```")[0]
    named = ""
    for line in diff.splitlines():
        if line.startswith(" # "):
            named = (project_root / "hf_gpt_scratch" / line[3:]).read_text(encoding="utf-8")
        else:
            assert (line[1:] in named.splitlines()) == line.startswith("+"), line
