"""Proves that the plot follows the run without slowing it, and that several runs come into one picture."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.reporting import loss_plot
from hf_gpt_scratch.training.reporting.history import History
from hf_gpt_scratch.training.reporting.loss_plot import plot_runs
from hf_gpt_scratch.training.settings import TrainingSettings


def test_plot_is_there_after_each_evaluation_and_never_in_halves(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_plot, "LARGEST_SHARE", 1e9)
    seen: list[list[str]] = []
    evaluate = loop.evaluate

    def evaluate_and_look(*arguments: object) -> list[float]:
        result = evaluate(*arguments)
        folder = Path(settings.output_dir)
        seen.append(sorted(path.name for path in folder.glob("loss*")))
        sizes.append((folder / "loss.png").stat().st_mtime_ns)
        assert (folder / "loss.png").read_bytes().endswith(b"IEND\xaeB`\x82")  # PNG's last chunk
        return result

    settings = tiny_settings(max_steps=4, eval_steps=2)
    sizes: list[int] = []
    monkeypatch.setattr(loop, "evaluate", evaluate_and_look)
    train(settings)
    assert seen == [["loss.png"]] * 3
    assert sizes == sorted(set(sizes))  # drawn anew each time


def test_drawing_takes_a_twentieth_of_the_time_at_most(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This run of a second is not drawn before its end."""
    drawn: list[tuple] = []
    plot_losses = History.plot_losses
    monkeypatch.setattr(
        History, "plot_losses", lambda *arguments: (drawn.append(arguments[1:]), plot_losses(*arguments))
    )
    monkeypatch.setattr(loss_plot, "LARGEST_SHARE", 0.0001)
    settings = tiny_settings(max_steps=4, eval_steps=1)
    train(settings)
    assert drawn == [(("png", "pdf"),)]
    assert sorted(path.name for path in Path(settings.output_dir).glob("loss*")) == ["loss.pdf", "loss.png"]


def write_history(folder: Path, shift: float) -> Path:
    folder.mkdir(parents=True)
    history = History(folder / "history.jsonl")
    for step in range(4):
        history.append(
            "evaluation",
            global_step=step,
            epoch=step / 2,
            tokens_seen=step * 10,
            train_loss=9 - step - shift,
            validation_loss=9 - shift,
        )
        history.append(
            "step", global_step=step + 1, tokens_seen=step * 10 + 10, loss=None if step == 1 else 9.5 - step
        )
    return folder


def test_script_draws_several_runs(project_root: Path, tmp_path: Path) -> None:
    folders = [write_history(tmp_path / "runs" / name, shift) for name, shift in (("a", 0), ("b", 1))]
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        output = tmp_path / "pictures" / f"runs-0.5{suffix}"
        if suffix == ".png":
            script = str(project_root / "scripts" / "plot_history.py")
            command = [sys.executable, "-X", "importtime", script, *map(str, folders)]
            result = subprocess.run(
                [*command, "--x", "tokens", "--output", str(output)],
                capture_output=True,
                text=True,
                timeout=120,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert result.returncode == 0, result.stderr
            assert result.stdout == f"plot: {output}\n"
            imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
            assert "matplotlib.figure" in imported
            assert not {"torch", "transformers"} & imported  # they take seconds
        else:
            assert plot_runs(folders, output, "steps") == output
        assert output.read_bytes().startswith(start)
    assert sorted(path.name for path in output.parent.iterdir()) == ["runs-0.5.pdf", "runs-0.5.png"]


def test_curves_are_those_of_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list = []
    make = loss_plot.runs_figure
    monkeypatch.setattr(loss_plot, "runs_figure", lambda *arguments: figures.append(make(*arguments)) or figures[-1])
    folders = [write_history(tmp_path / place / "same", shift) for place, shift in (("x", 0), ("y", 2))]
    plot_runs(folders, tmp_path / "runs.png", "tokens")
    lines = figures[0].axes[0].lines
    legend = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert legend == [f"{name}: {kind}" for name in ("same", folders[1]) for kind in ("training", "validation")]
    training, validation, steps, means = lines[4:]
    assert list(training.get_xdata()) == [0, 10, 20, 30]
    assert list(training.get_ydata()) == [7, 6, 5, 4]
    assert (list(steps.get_xdata()), list(steps.get_ydata())) == ([10, 30, 40], [9.5, 7.5, 6.5])  # one was not finite
    assert {line.get_color() for line in lines[4:]} == {training.get_color()} != {lines[0].get_color()}
    assert [line.get_linestyle() for line in lines] == ["-", "-.", "-", "-"] * 2


def test_damaged_row_is_named_and_the_others_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = write_history(tmp_path / "run", 0)
    rows = (folder / "history.jsonl").read_bytes().splitlines(keepends=True)
    lines = [row for row in rows if b"evaluation" in row]
    (folder / "history.jsonl").write_bytes(lines[0] + lines[1][:40] + b"\x00\xff\n" + lines[2] + lines[3])
    figures: list = []
    make = loss_plot.runs_figure
    monkeypatch.setattr(loss_plot, "runs_figure", lambda *arguments: figures.append(make(*arguments)) or figures[-1])
    plot_runs([folder], tmp_path / "runs.png", "steps")
    assert list(figures[0].axes[0].lines[0].get_xdata()) == [0, 2, 3]
    assert capsys.readouterr().err == f"warning: {folder / 'history.jsonl'}: line 2 cannot be read, left out\n"


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no history.jsonl with evaluations"):
        plot_runs([tmp_path], tmp_path / "x.png", "steps")
    with pytest.raises(ValueError, match="neither .png nor .pdf"):
        plot_runs([tmp_path], tmp_path / "x.jpg", "steps")


def test_picture_that_cannot_be_written_costs_no_result(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Said once; before, a finished run had no model/, and each --resume ended alike."""
    settings = tiny_settings(max_steps=4, eval_steps=1)
    (Path(settings.output_dir) / "loss.png").mkdir(parents=True)
    monkeypatch.setattr("hf_gpt_scratch.training.build.claim_folder", lambda settings, lock, make: None)
    result = train(settings)
    assert (result.repository / "model.safetensors").is_file()
    said = capsys.readouterr().err
    assert said.count("the losses are not drawn: ") == 1
    assert f"{settings.output_dir}/.loss.png" in said
