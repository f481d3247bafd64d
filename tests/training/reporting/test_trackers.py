"""Proves the trackers with what they wrote, read by others: tensorboard's own reader, and trackio's file by sqlite."""

import json
import math
import shutil
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import accelerate.tracking
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.reporting import trackers
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, step_losses


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Trackio reads the variable when it is imported, so it is imported anew."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / "trackio"
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        del sys.modules[name]


def killed_after_step_3(settings: TrainingSettings) -> TrainingSettings:
    """Leave what a finished run of 6 steps had on the disk at its first checkpoint, but for the rows after it."""
    shutil.rmtree(Path(settings.output_dir) / "checkpoints" / "step-00000006")
    return TrainingSettings(**{**settings.to_dict(), "resume": True})


def tensorboard_points(settings: TrainingSettings, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(Path(settings.output_dir) / trackers.PROJECT))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_has_each_step_once_also_after_a_resume(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings(report_to=["tensorboard"], save_steps=3)
    train(settings)
    steps = rows(settings.output_dir, "step")
    expected = [(row["global_step"], pytest.approx(row["loss"], rel=1e-6)) for row in steps]
    assert tensorboard_points(settings, "loss") == expected
    assert [step for step, _ in tensorboard_points(settings, "validation_loss")] == [0, 3, 6]
    train(killed_after_step_3(settings))
    assert tensorboard_points(settings, "loss") == expected
    assert [step for step, _ in tensorboard_points(settings, "validation_loss")] == [0, 3, 6]


def test_tracker_has_bits_per_byte_and_the_error_of_a_part_of_the_text(
    tiny_settings: Callable[..., TrainingSettings],
) -> None:
    settings = tiny_settings(report_to=["tensorboard"], validation_file=[str(bundled_text_path())])
    train(settings)
    evaluations = rows(settings.output_dir, "evaluation")
    for name in ("train_loss", "validation_loss", "bits_per_byte", "standard_error"):
        expected = [(row["global_step"], pytest.approx(row[name], rel=1e-6)) for row in evaluations]
        assert tensorboard_points(settings, name) == expected


def test_trackio_has_the_figures_and_goes_on_with_the_same_run(
    tiny_settings: Callable[..., TrainingSettings], trackio_folder: Path
) -> None:
    settings = tiny_settings(report_to=["trackio"], save_steps=3)
    train(settings)
    train(killed_after_step_3(settings))
    with sqlite3.connect(trackio_folder / f"{trackers.PROJECT}.db") as database:
        logged = database.execute("select run_id, run_name, step, metrics from metrics").fetchall()
        config = json.loads(database.execute("select config from configs").fetchone()[0])
    run_id = rows(settings.output_dir, "run")[0]["run_id"]
    assert {name for _, name, *_ in logged} == {f"run-{run_id[:8]}"}
    assert len({run_id for run_id, *_ in logged}) == 1
    assert config["learning_rate"] == settings.learning_rate
    figures = [(step, json.loads(metrics)) for _, _, step, metrics in logged]
    losses = {step: values["loss"] for step, values in figures if "loss" in values}
    assert list(losses.values()) == step_losses(settings.output_dir)
    assert all(
        {"mfu", "tokens_per_second", "peak_memory_bytes"} <= set(values) for _, values in figures if "loss" in values
    )
    # It has no way to take a step back: what came after the checkpoint is there twice, with the same values.
    counts = Counter(step for step, values in figures if "loss" in values)
    assert counts == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}


@pytest.mark.filterwarnings("error")
def test_trackio_by_itself(trackio_folder: Path) -> None:
    """What is no number becomes a text, and a second run of the same name is another one, without a word."""
    import trackio

    for _ in range(2):
        trackio.init(project="plain", name="run")
        trackio.log({"loss": math.nan, "norm": math.inf})
        trackio.finish()
    with sqlite3.connect(trackio_folder / "plain.db") as database:
        logged = database.execute("select run_id, run_name, metrics from metrics").fetchall()
    assert len({run_id for run_id, *_ in logged}) == 2
    assert [(name, json.loads(metrics)) for _, name, metrics in logged] == [
        ("run", {"loss": "NaN", "norm": "Infinity"})
    ] * 2


def test_trackio_tells_runs_in_folders_of_one_name_apart(
    tiny_settings: Callable[..., TrainingSettings], trackio_folder: Path, tmp_path: Path
) -> None:
    changes = {"report_to": ["trackio"], "save_steps": 3, "eval_steps": 9}
    first, second = (tiny_settings(output_dir=str(tmp_path / name / "run"), **changes) for name in "ab")
    train(first)
    train(second)
    train(killed_after_step_3(first))
    with sqlite3.connect(trackio_folder / f"{trackers.PROJECT}.db") as database:
        logged = database.execute("select run_id, step, metrics from metrics order by id").fetchall()
    steps = defaultdict(list)
    for run_id, step, metrics in logged:
        if "grad_norm" in json.loads(metrics):
            steps[run_id].append(step)
    assert list(steps.values()) == [[1, 2, 3, 4, 5, 6, 4, 5, 6], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(("names", "expected"), [(["none"], set()), (["all"], {"tensorboard", "trackio"})])
def test_none_and_all_are_what_the_library_calls_them(
    tiny_settings: Callable[..., TrainingSettings],
    trackio_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    expected: set[str],
) -> None:
    for place in (trackers, accelerate.tracking):  # others may be installed, and want an account
        monkeypatch.setattr(place, "get_available_trackers", lambda: ["tensorboard", "trackio"])
    settings = tiny_settings(report_to=names, max_steps=1, warmup_steps=0)
    train(settings)
    written = {"tensorboard": Path(settings.output_dir) / trackers.PROJECT, "trackio": trackio_folder}
    assert {name for name, path in written.items() if path.exists()} == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tensorbord", "--report_to tensorbord is unknown: there is aim, tensorboard, wandb, trackio"),
        ("comet_ml", "--report_to comet_ml needs a package: pip install comet-ml"),
    ],
)
def test_trackers_that_cannot_run_are_refused_in_one_line(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=reason) as caught:
        trackers.check_trackers(["tensorboard", name])
    assert "\n" not in str(caught.value)
