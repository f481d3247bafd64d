"""Proves that the history keeps every event, forgets exactly what a resume repeats, and draws a plot."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest

from hf_gpt_scratch.plots import LossCurves
from hf_gpt_scratch.training.reporting.history import MOST_ROWS, History


def test_rows_come_back_in_order_and_by_event(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.append("step", global_step=1, loss=0.1)
    history.append("evaluation", train_loss=1.0)
    history.append("step", global_step=2, loss=1 / 3)
    assert history.rows("step") == [
        {"event": "step", "global_step": 1, "loss": 0.1},
        {"event": "step", "global_step": 2, "loss": 1 / 3},  # floats keep all their digits
    ]


def written(folder: Path, steps: int = 4) -> tuple[History, list[bytes]]:
    """A history with an evaluation after each step, and its lines."""
    history = History(folder / "history.jsonl")
    history.append("run", run_id="x", resumed_at_step=0)
    for step in range(1, steps + 1):
        history.append("step", global_step=step, loss=1 / step)
        losses = {"train_loss": 9.0 - step, "validation_loss": 9.0}
        history.append("evaluation", global_step=step, epoch=step / 2, tokens_seen=step, **losses)
    return history, history.path.read_bytes().splitlines(keepends=True)


def steps_of(history: History) -> list[int]:
    return [row["global_step"] for row in history.rows("step")]


def test_going_back_forgets_what_came_after(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history, lines = written(tmp_path, 1)
    mark = history.mark()
    assert mark == (len(b"".join(lines)), hashlib.sha256(b"".join(lines)).hexdigest())
    history.append("step", global_step=2)
    again = History(history.path)
    again.go_back(*mark, 1)
    assert steps_of(again) == [1]
    assert history.path.read_bytes() == b"".join(lines)
    again.append("step", global_step=2)
    assert steps_of(History(history.path)) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("fault", "kept", "reason"),
    [
        ("cut in the middle", [1, 3], "line 4 cannot be read"),
        ("of another kind", [1, 3], "line 4 cannot be read"),
        ("zeros", [1, 3], "line 4 cannot be read"),
        ("deleted", [1, 3], "is damaged"),
        ("other digit", [1, 2, 3], "it is not what it was at the checkpoint"),
        ("short", [1], "bytes, and had"),
        ("nested", [1, 3], "line 4 cannot be read"),
    ],
)
def test_damaged_history_is_named_kept_aside_and_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture, fault: str, kept: list[int], reason: str
) -> None:
    """The rows of step 4 came after the checkpoint, and are there to come again."""
    history, lines = written(tmp_path)
    mark = len(b"".join(lines[:-2])), hashlib.sha256(b"".join(lines[:-2])).hexdigest()
    damage = {
        "cut in the middle": [*lines[:3], lines[3][:20] + b"\n", *lines[4:]],
        "of another kind": [*lines[:3], b'{"event": "step", "global_step": "two"}\n', *lines[4:]],
        "zeros": [*lines[:3], bytes(len(lines[3]) - 1) + b"\n", *lines[4:]],
        "deleted": [*lines[:3], *lines[4:]],
        "other digit": [*lines[:3], lines[3].replace(b"0.5", b"0.6"), *lines[4:]],
        "short": lines[:3],
        "nested": [*lines[:3], b"[" * 100_000 + b"\n", *lines[4:]],
    }
    damaged = b"".join(damage[fault])
    assert damaged != b"".join(lines)
    history.path.write_bytes(damaged)
    again = History(history.path)
    again.go_back(*mark, 3)
    assert steps_of(again) == kept
    assert again.rows("run") == [{"event": "run", "run_id": "x", "resumed_at_step": 0}]
    line = capsys.readouterr().err
    assert line.startswith(f"warning: {history.path} is damaged (")
    assert reason in line
    assert "kept as history.damaged.jsonl, rebuilt from the rows that can be read" in line
    assert (tmp_path / "history.damaged.jsonl").read_bytes() == damaged
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.damaged.jsonl", "history.jsonl"]
    # And from there on it is a history like any other.
    mark = again.mark()
    once_more = History(history.path)
    once_more.go_back(*mark, 3)
    assert steps_of(once_more) == kept
    assert capsys.readouterr().err == ""


def test_no_copy_takes_the_place_of_another(tmp_path: Path) -> None:
    for _ in range(2):
        history, lines = written(tmp_path)
        history.path.write_bytes(b"".join(lines[:2]))
        again = History(history.path)
        again.go_back(len(b"".join(lines)), None, 4)
        history.path.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.damaged-2.jsonl", "history.damaged.jsonl"]


def test_missing_history_begins_anew_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history = History(tmp_path / "history.jsonl")
    history.go_back(500, "0" * 64, 7)
    assert capsys.readouterr().err == f"warning: {history.path} is missing: it begins again at step 7\n"
    history.append("step", global_step=8)
    assert steps_of(History(history.path)) == [8]


def test_history_removed_during_the_run_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history, lines = written(tmp_path)
    history.path.unlink()
    history.append("step", global_step=5)
    assert capsys.readouterr().err == f"warning: {history.path} was removed: written again from the rows in memory\n"
    assert steps_of(history) == steps_of(History(history.path)) == [1, 2, 3, 4, 5]
    assert history.path.read_bytes().splitlines(keepends=True)[:-1] == lines
    mark = history.mark()
    again = History(history.path)
    again.go_back(*mark, 5)
    assert capsys.readouterr().err == ""


def test_history_changed_during_the_run_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history, lines = written(tmp_path)
    history.path.write_bytes(b"".join(lines[:3]))
    history.append("step", global_step=5)
    assert "was changed while this run writes it" in capsys.readouterr().err
    assert steps_of(history) == [1, 2, 3, 4, 5]
    mark = history.mark()
    again = History(history.path)
    again.go_back(*mark, 5)
    assert steps_of(again) == [1, 5]
    assert capsys.readouterr().err == ""


def test_long_history_is_read_once_in_memory_that_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    with path.open("w") as file:
        for step in range(1, 100_001):
            values = {
                "global_step": step,
                "epoch": step / 2,
                "tokens_seen": step,
                "train_loss": 1,
                "validation_loss": 2,
            }
            file.write(json.dumps({"event": "evaluation", **values}) + "\n")
    num_bytes = path.stat().st_size
    opened: list[Path] = []
    open_path = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: opened.append(self) or open_path(self, *mode))
    tracemalloc.start()
    history = History(path)
    history.go_back(num_bytes, None, 100_000)
    rows = history.rows("evaluation")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert history.count("evaluation") == 100_000
    assert [rows[0]["global_step"], rows[-1]["global_step"]] == [1, 100_000]
    assert 2000 < len(rows) <= MOST_ROWS + 1
    gaps = {after["global_step"] - before["global_step"] for before, after in zip(rows[:-1], rows[1:-1], strict=False)}
    assert len(gaps) == 1
    assert peak < 8e6 < num_bytes
    history.count("step")
    assert opened == [path, path]  # its last row alone, and then all of it


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
    history.plot_losses()
    assert list(tmp_path.iterdir()) == []


def test_plot_is_drawn_from_the_evaluations(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for step in range(3):
        history.append("evaluation", epoch=step / 2, tokens_seen=step * 10, train_loss=9 - step, validation_loss=9)
        history.append("step", tokens_seen=step * 10 + 5, loss=9.5 - step if step else None)
    curves = history.loss_curves("tokens_seen", unit=20)
    assert curves == LossCurves([0, 0.5, 1], [9, 8, 7], [9, 9, 9], [0.75, 1.25], [8.5, 7.5])
    history.plot_losses()
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert (tmp_path / "loss.pdf").stat().st_size > 5000
