"""What happened in a run: one JSON row per event, appended as it happens, and the losses drawn as a plot."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_gpt_scratch.files import errors_name, flush
from hf_gpt_scratch.plots import loss_figure, save_figure


class History:
    """The file history.jsonl of a run: a row at the start, per step, per evaluation, per sample and at the end.

    Args:
        path: the file; it is created by the first row.
        writes: whether this process writes; on all others every call does nothing.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    def append(self, event: str, **values: Any) -> None:
        """Add one row, in one write."""
        if self.writes:
            with errors_name(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")

    def rows(self, event: str) -> list[dict[str, Any]]:
        """All rows of one kind of event, oldest first; a last one that a kill cut off is left out."""
        if not self.path.is_file():
            return []
        *lines, _ = self.path.read_text(encoding="utf-8").split("\n")
        rows = map(json.loads, lines)
        return [row for row in rows if row["event"] == event]

    def flush(self) -> None:
        """Have all rows on the disk, before a checkpoint counts on them."""
        if self.writes and self.path.is_file():
            flush(self.path)

    def size(self) -> int:
        """Bytes written so far: with it a checkpoint remembers where the history was."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def truncate(self, size: int) -> None:
        """Forget what happened after a checkpoint, because it will happen again."""
        if self.writes:
            if self.size() < size:
                raise ValueError(f"{self.path} is shorter than at the checkpoint: it was changed by hand, restore it")
            if self.path.is_file():
                os.truncate(self.path, size)

    def plot_losses(self, stem: Path, suffixes: Sequence[str] = ("png", "pdf")) -> None:
        """Draw training and validation loss of all evaluations as PNG and PDF, or only one of them."""
        rows = self.rows("evaluation")
        if self.writes and rows:
            columns = [[row[key] for row in rows] for key in ("epoch", "tokens_seen", "train_loss", "validation_loss")]
            save_figure(loss_figure(*columns), stem, suffixes)
