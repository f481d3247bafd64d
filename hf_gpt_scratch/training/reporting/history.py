"""The history of a run: one JSON row per event, appended as it happens, and the plot of its losses.

A run does not need it to continue: a history that was removed or damaged is only named in a warning.
"""

import hashlib
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_gpt_scratch.plots import LossCurves, loss_figure, save_figure
from hf_gpt_scratch.runtime.cli import lost_streams
from hf_gpt_scratch.runtime.files import atomic_file, file_sha256, flush, name_file_in_errors, update_hash
from hf_gpt_scratch.training.reporting.progress_bar import warn


Row = dict[str, Any]

MOST_ROWS = 4096  # of an event that are held in memory
# Keys that plot and card read, so that a row without them does not count as readable.
NEEDED: dict[str, dict[str, Any]] = {
    "step": {"global_step": int},
    "sample": {"global_step": int, "text": str},
    "evaluation": {
        **{"global_step": int, "epoch": (int, float), "tokens_seen": int},
        **{"train_loss": (int, float), "validation_loss": (int, float)},
    },
}


@dataclass
class SomeRows:
    """Rows of one event: all of them, or of very many the first, the last and evenly chosen ones between."""

    count: int = 0
    stride: int = 1
    rows: list[Row] = field(default_factory=list)
    last: Row | None = None

    def add(self, row: Row) -> None:
        """Add the next row."""
        if self.count % self.stride == 0:
            self.rows.append(row)
        if len(self.rows) > MOST_ROWS:
            self.rows, self.stride = self.rows[::2], 2 * self.stride
        self.count, self.last = self.count + 1, row

    def chosen(self) -> list[Row]:
        """Return the rows that are held, oldest first."""
        if self.last is None or self.rows[-1] is self.last:
            return self.rows
        return [*self.rows, self.last]


class History:
    """The file history.jsonl of a run: a row at the start, per step, per evaluation, per sample and at the end.

    The file is read once at most, in memory that does not grow with it.

    Args:
        path: the file; it is created by the first row.
        writes: True on the process that writes; on all others every call does nothing.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.card_sha256: str | None = None  # of the model card that this run wrote when it ended before
        self._is_read = False
        self._lost: set[str] = set()
        self._forget()

    def append(self, event: str, **values: Any) -> None:
        """Add one row, in one write."""
        if not self.writes:
            return
        self._read()
        self._look_after_file()
        row = {"event": event, **values}
        self._write(row)
        self._rows[event].add(row)

    def note_lost_output(self, global_step: int) -> None:
        """Add a row for each standard stream that broke, once: the run continues, and nothing else can tell it."""
        for name, reason in lost_streams().items():
            if name not in self._lost:
                self._lost.add(name)
                self.append("output_lost", global_step=global_step, stream=name, reason=reason)

    def rows(self, event: str) -> list[Row]:
        """Return rows of one kind of event, oldest first: all, or evenly chosen ones of more than `MOST_ROWS`.

        Unreadable rows are named and left out; so is a last one that a kill cut off.
        """
        self._read()
        return self._rows[event].chosen()

    def count(self, event: str) -> int:
        """Return the number of rows of one kind of event."""
        self._read()
        return self._rows[event].count

    def mark(self) -> tuple[int, str]:
        """Flush all rows to the disk, before a checkpoint relies on them, and return their bytes and SHA-256."""
        if self.writes and self.path.is_file():
            flush(self.path)
        return self._num_bytes, self._digest.hexdigest()

    def clear(self) -> None:
        """Delete all rows, because the run begins."""
        if self.writes:
            if self.path.is_file():
                os.truncate(self.path, 0)
            self._forget()
            self._is_read = True

    def go_back(self, num_bytes: int, sha256: str | None, global_step: int) -> None:
        """Delete the rows after a checkpoint, because their events will happen again.

        If the rows before it have changed, a warning says so, a copy of the file is kept, and its readable rows become
        the history.

        Args:
            num_bytes: size of the history at the checkpoint.
            sha256: its hash, None if an older version did not record it.
            global_step: of the checkpoint.
        """
        if not self.writes:
            return
        last = self._last_row()
        self.card_sha256 = last.get("sha256") if last and last["event"] == "card" else None
        self._forget()
        self._is_read = True
        if not self.path.is_file():
            if num_bytes:
                what = "is not a file" if self.path.exists() else "is missing"
                warn(f"{self.path} {what}: it begins again at step {global_step}")
            return
        faults = [number for number, row in enumerate(self._lines(num_bytes), 1) if row is None]
        if not faults and self._num_bytes == num_bytes and sha256 in (None, self._digest.hexdigest()):
            os.truncate(self.path, num_bytes)
        else:
            self._rebuild(num_bytes, global_step, faults)

    def plot_losses(self, suffixes: Sequence[str] = ("png", "pdf")) -> None:
        """Draw the losses beside the file, as loss.png and loss.pdf or one of them, once there is an evaluation."""
        rows = self.rows("evaluation") if self.writes else []
        if rows:
            tokens_per_epoch = rows[-1]["tokens_seen"] / rows[-1]["epoch"] if rows[-1]["epoch"] else 1.0
            figure = loss_figure(self.loss_curves("tokens_seen", tokens_per_epoch), tokens_per_epoch)
            save_figure(figure, self.path.with_name("loss"), suffixes)

    def loss_curves(self, key: str, unit: float = 1) -> LossCurves:
        """Return the losses of all evaluations and steps over `global_step` or `tokens_seen`, in a larger unit."""
        evaluations = self.rows("evaluation")
        steps = [row for row in self.rows("step") if row.get("loss") is not None and key in row]
        # The text is the same, so that all evaluations have one factor.
        # Neither a loss of 0 nor one that is not finite says how long a token is.
        in_bits = [row for row in evaluations if 0 < row.get("bits_per_byte", 0) < math.inf]
        return LossCurves(
            [row[key] / unit for row in evaluations],
            [row["train_loss"] for row in evaluations],
            [row["validation_loss"] for row in evaluations],
            [row[key] / unit for row in steps],
            [row["loss"] for row in steps],
            in_bits[-1]["bits_per_byte"] / in_bits[-1]["validation_loss"] if in_bits else None,
        )

    def note_card(self, card: Path, is_kept: bool) -> None:
        """Add a row with the hash of the model card that was written; of one that was kept, that of what it was."""
        if self.writes:
            self.append("card", sha256=self.card_sha256 if is_kept else file_sha256(card))

    def is_edited(self, card: Path) -> bool:
        """Return True if a model card is not the one that this run wrote when it ended before."""
        return self.card_sha256 is not None and card.is_file() and file_sha256(card) != self.card_sha256

    def _last_row(self) -> Row | None:
        if not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - 4096))
            return parse_row(b"".join(file.read().splitlines(keepends=True)[-1:]))

    def _forget(self) -> None:
        self._rows: defaultdict[str, SomeRows] = defaultdict(SomeRows)
        self._num_bytes = 0  # of the file, as far as this object has read and written it
        self._digest = hashlib.sha256()

    def _read(self) -> None:
        if self._is_read:
            return
        self._is_read = True
        if self.path.is_file():
            faults = [number for number, row in enumerate(self._lines(), 1) if row is None]
            if faults:
                warn(f"{self.path}: {named(faults)} cannot be read, left out")

    def _lines(self, num_bytes: int | None = None) -> Iterator[Row | None]:
        """Read the rows of the file that begin before `num_bytes`; yield None for an unreadable one."""
        with self.path.open("rb") as file:
            for line in file:
                if num_bytes is not None and self._num_bytes >= num_bytes:
                    return
                self._num_bytes += len(line)
                self._digest.update(line)
                row = parse_row(line)
                if row is not None:
                    self._rows[row["event"]].add(row)
                if row is not None or line.endswith(b"\n"):
                    yield row

    def _write(self, row: Row) -> None:
        line = (json.dumps(row) + "\n").encode()
        with name_file_in_errors(self.path), self.path.open("ab") as file:
            file.write(line)
        self._num_bytes += len(line)
        self._digest.update(line)

    def _look_after_file(self) -> None:
        """Check that the file is as this object left it; write a removed one again from the rows in memory."""
        size = self.path.stat().st_size if self.path.is_file() else None
        if size == self._num_bytes or (size is None and not self._num_bytes):
            return
        self._num_bytes, self._digest = 0, hashlib.sha256()
        if size is None:
            warn(f"{self.path} was removed: written again from the rows in memory")
            for row in sorted((row for rows in self._rows.values() for row in rows.chosen()), key=moment):
                self._write(row)
            return
        warn(f"{self.path} was changed while this run writes it: the next --resume will take what can be read of it")
        self._digest = update_hash(self.path, hashlib.sha256())
        self._num_bytes = size

    def _rebuild(self, num_bytes: int, global_step: int, faults: list[int]) -> None:
        """Keep a copy of the file and atomically replace it by its readable rows up to a step."""
        found, aside = self._num_bytes, unused_name(self.path)
        with atomic_file(aside) as copy:
            shutil.copyfile(self.path, copy)
        with atomic_file(self.path) as rebuilt, aside.open("rb") as source, rebuilt.open("wb") as target:
            for line in source:
                row = parse_row(line)
                if row is not None and row["event"] not in ("end", "card") and moment(row) <= global_step:
                    target.write(line if line.endswith(b"\n") else line + b"\n")
        self._forget()
        for _ in self._lines():
            pass
        if faults:
            reason = f"{named(faults)} cannot be read"
        elif found < num_bytes:
            reason = f"it has {found:,} bytes, and had {num_bytes:,} at the checkpoint"
        else:
            reason = "it is not what it was at the checkpoint"
        warn(f"{self.path} is damaged ({reason}): kept as {aside.name}, rebuilt from the rows that can be read")


def parse_row(line: bytes) -> Row | None:
    """Parse a line of a history; return None if it is cut off or lacks keys that plot and card read."""
    try:
        row = json.loads(line.decode("utf-8"))
        needed = NEEDED.get(row["event"], {})
        is_whole = all(isinstance(row[key], kind) for key, kind in needed.items())
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return row if is_whole and line.endswith(b"\n") else None


def moment(row: Row) -> int:
    """Return the number of steps done when a row was written."""
    return int(row.get("global_step") or row.get("resumed_at_step") or 0)


def named(lines: Sequence[int]) -> str:
    """Name the lines of a file, of many the first."""
    return f"line {lines[0]}" + (f" and {len(lines) - 1} more" if len(lines) > 1 else "")


def unused_name(path: Path) -> Path:
    """Return a name beside a file to keep it under: history.damaged.jsonl, history.damaged-2.jsonl and so on."""
    number, name = 1, path.with_name(f"{path.stem}.damaged{path.suffix}")
    while name.exists():
        number += 1
        name = path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")
    return name
