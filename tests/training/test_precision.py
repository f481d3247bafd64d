"""Proves what `--mixed_precision auto` takes and says, and that a resumed run keeps it, to the last bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from hf_gpt_scratch.training import precision
from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.dry_run import dry_run
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.precision import LEAST_SPEEDUP, decide_precision
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, step_losses


def multiply_as_fast_as(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    """Have products in bf16 measured that many times as fast as in float32."""
    peaks = {torch.float32: 1e11, torch.bfloat16: speedup * 1e11}
    monkeypatch.setattr(precision, "measure_peak_flops", lambda device, dtype: peaks[dtype])


@pytest.mark.parametrize(
    ("speedup", "taken", "shown"),
    [
        (4.53, "bf16", "4.5"),
        (LEAST_SPEEDUP, "bf16", "1.5"),
        (LEAST_SPEEDUP - 0.1, "no", "1.4"),
        (0.031, "no", "0.031"),
    ],
)
def test_bf16_only_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, speedup: float, taken: str, shown: str
) -> None:
    multiply_as_fast_as(monkeypatch, speedup)
    assert decide_precision(parse_settings(["--mixed_precision", "auto"]), PartialState(cpu=True)) == taken
    assert capsys.readouterr().out == (
        f"--mixed_precision auto takes {taken}: a matrix product in bf16 is {shown} times as fast as in float32 here\n"
    )


def test_one_bad_moment_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 or in bf16 the device is busy once; the best of two counts."""
    for good, expected in ((4e11, "bf16"), (1e11, "no")):
        peaks = {torch.float32: iter([2e10, 1e11]), torch.bfloat16: iter([good, good / 9])}
        monkeypatch.setattr(precision, "measure_peak_flops", lambda device, dtype, peaks=peaks: next(peaks[dtype]))
        assert precision.fastest(torch.device("cpu"))[0] == expected


@pytest.mark.parametrize("asked", [None, "no", "bf16"])
def test_nothing_is_measured_or_said_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, asked: str | None
) -> None:
    monkeypatch.delattr(precision, "measure_peak_flops")
    assert decide_precision(TrainingSettings(mixed_precision=asked), PartialState(cpu=True)) == asked
    assert capsys.readouterr().out == ""
    assert TrainingSettings().mixed_precision is None, "the default is the launcher's"


def test_this_machine_is_measured() -> None:
    taken, reason = precision.fastest(torch.device("cpu"))
    assert taken in ("no", "bf16")
    assert (float(reason.split(" is ")[1].split()[0]) >= LEAST_SPEEDUP) is (taken == "bf16")


@pytest.mark.parametrize(("speedup", "taken"), [(3, "bf16"), pytest.param(1, "no", marks=pytest.mark.nightly)])
def test_resumed_run_keeps_the_precision_on_a_machine_that_would_choose_another(
    tiny_settings: Callable[..., TrainingSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    speedup: float,
    taken: str,
) -> None:
    """Six steps, and three with three more: the same losses and weights, dropout included."""
    multiply_as_fast_as(monkeypatch, speedup)
    same = {"mixed_precision": "auto", "dropout": 0.1, "max_position_embeddings": 64, "per_device_train_batch_size": 1}
    whole = tiny_settings(**same)
    train(whole)
    assert capsys.readouterr().out.startswith(f"--mixed_precision auto takes {taken}: ")
    run = rows(whole.output_dir, "run")[0]
    assert run["precision"] == taken.replace("no", "fp32")
    assert run["settings"]["mixed_precision"] == taken
    parts = tiny_settings(**same, output_dir=str(tmp_path / "parts"), save_steps=3)
    train(parts)
    checkpoint = Path(parts.output_dir, "checkpoints", "step-00000006")
    checkpoint.rename(tmp_path / "last")
    multiply_as_fast_as(monkeypatch, 4 - speedup)
    resumed = TrainingSettings(**parts.to_dict() | {"resume": True})
    capsys.readouterr()
    train(resumed)
    assert capsys.readouterr().out.startswith(f"--mixed_precision auto takes {taken}: the run began with it\n")
    assert step_losses(parts.output_dir) == step_losses(whole.output_dir)
    weights = [load_file(Path(one.output_dir, "model", "model.safetensors")) for one in (whole, parts)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    AcceleratorState._reset_state(True)  # as in another process
    other = {"bf16": "no", "no": "bf16"}[taken]
    with pytest.raises(ValueError, match=f"--mixed_precision was {taken}, is {other}; resume with the old values"):
        train(TrainingSettings(**parts.to_dict() | {"resume": True, "mixed_precision": other}))


def test_damaged_checkpoint_is_passed_over(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    multiply_as_fast_as(monkeypatch, 3)
    settings = tiny_settings(mixed_precision="auto", save_steps=3)
    train(settings)
    Path(settings.output_dir, "checkpoints", "step-00000006", "state.json").write_text("{")
    monkeypatch.delattr(precision, "measure_peak_flops")
    train(TrainingSettings(**settings.to_dict() | {"resume": True}))
    assert "takes bf16: the run began with it" in capsys.readouterr().out


def test_dry_run_says_it_too(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    multiply_as_fast_as(monkeypatch, 3)
    assert dry_run(tiny_settings(mixed_precision="auto"))
    assert "--mixed_precision auto takes bf16" in capsys.readouterr().out
