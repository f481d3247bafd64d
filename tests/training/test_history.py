"""Proves that the history keeps every event, forgets exactly what a resume repeats, and draws a plot."""

from pathlib import Path

import pytest

from hf_gpt_scratch.training.history import History


def test_rows_come_back_in_order_and_by_event(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.append("step", global_step=1, loss=0.1)
    history.append("evaluation", train_loss=1.0)
    history.append("step", global_step=2, loss=1 / 3)
    assert history.rows("step") == [
        {"event": "step", "global_step": 1, "loss": 0.1},
        {"event": "step", "global_step": 2, "loss": 1 / 3},  # floats keep all their digits
    ]


def test_truncating_forgets_what_came_after(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.append("step", global_step=1)
    size = history.size()
    history.append("step", global_step=2)
    history.truncate(size)
    assert [row["global_step"] for row in history.rows("step")] == [1]
    with pytest.raises(ValueError, match="shorter than at the checkpoint"):
        history.truncate(size + 1)


def test_row_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.append("step", global_step=1)
    with history.path.open("a") as file:
        file.write('{"event": "step", "glo')
    assert [row["global_step"] for row in history.rows("step")] == [1]


def test_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        History(Path("/dev/full")).append("step", global_step=1)
    assert caught.value.filename == "/dev/full"


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", writes=False)
    history.append("step", global_step=1)
    history.plot_losses(tmp_path / "loss")
    assert list(tmp_path.iterdir()) == []


def test_plot_is_drawn_from_the_evaluations(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for step in range(3):
        history.append("evaluation", epoch=step / 2, tokens_seen=step * 10, train_loss=9 - step, validation_loss=9)
    history.plot_losses(tmp_path / "loss")
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert (tmp_path / "loss.pdf").stat().st_size > 5000
