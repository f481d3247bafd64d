"""Proves that what a machine cannot compute is refused in one line before anything is written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator

from hf_gpt_scratch.training import preflight
from hf_gpt_scratch.training.build import build_model
from hf_gpt_scratch.training.dry_run import dry_run
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_flex_attention_that_cannot_be_trained_here_is_refused_before_the_folder_is_made(
    tiny_settings: Callable[..., TrainingSettings], dropout: float
) -> None:
    """With dropout the library refuses it, without it PyTorch has no backward pass of it on a CPU."""
    settings = tiny_settings(attn_implementation="flex_attention", dropout=dropout)
    with pytest.raises(
        ValueError, match="a step cannot be computed here with --attn_implementation flex_att"
    ) as caught:
        train(settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(": leave it out")
    assert not Path(settings.output_dir).exists()


def test_missing_package_is_named_also_by_a_dry_run(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings(attn_implementation="flash_attention_2")
    for road in (train, dry_run):
        with pytest.raises(ValueError, match="flash_attention_2 needs a GPU and its package: pip install flash-attn"):
            road(settings)
    assert not Path(settings.output_dir).exists()


def test_trial_leaves_gradients_and_draws_as_they_were(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    settings = tiny_settings(dropout=0.1, torch_compile=True)
    model = build_model(tiny_settings(dropout=0.1), 0)
    before = torch.get_rng_state()
    calls: list[bool] = []
    model.register_forward_hook(lambda module, *_: calls.append(module.training))
    preflight.try_step(model, settings, Accelerator())
    assert calls == [True, False]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    preflight.try_step(model, tiny_settings(), Accelerator())  # nothing unusual, nothing tried
    assert len(calls) == 2


def test_missing_compiler_is_one_line_and_leaves_nothing(project_root: Path, short_text: Path, tmp_path: Path) -> None:
    arguments = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
    arguments += ["--max_position_embeddings", "16", "--max_steps", "2", "--train_file", str(short_text)]
    arguments += ["--output_dir", str(tmp_path / "a" / "run"), "--torch_compile", "--vocabulary", "bytes"]
    result = subprocess.run(
        [sys.executable, str(project_root / "scripts" / "train.py"), *arguments],
        env={
            **{"PATH": str(tmp_path), "HOME": str(tmp_path), "CXX": str(tmp_path / "no-compiler")},
            **{"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: a step cannot be computed here with --torch_compile (")
    assert not (tmp_path / "a").exists()


@pytest.mark.nightly
def test_launchers_compiler_is_asked_like_our_own_flag(project_root: Path, short_text: Path, tmp_path: Path) -> None:
    """`--dynamo_backend eager` with dropout: what draws it by numpy cannot be compiled."""
    arguments = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--dropout", "0.1"]
    arguments += ["--max_position_embeddings", "16", "--max_steps", "2", "--train_file", str(short_text)]
    arguments += ["--output_dir", str(tmp_path / "run"), "--vocabulary", "bytes", "--sample_tokens", "3"]
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--dynamo_backend", "eager"]
    result = subprocess.run(
        [*launcher, str(project_root / "scripts" / "train.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
