"""Loss plots: of a run in progress, and of several runs in one picture."""

import time
from collections.abc import Sequence
from pathlib import Path

from hf_gpt_scratch.plots import runs_figure, save_figure
from hf_gpt_scratch.runtime.cli import describe
from hf_gpt_scratch.runtime.files import name_file_in_errors
from hf_gpt_scratch.training.reporting.history import History
from hf_gpt_scratch.training.reporting.progress_bar import warn


LARGEST_SHARE = 0.01  # of the time of a run that may go into drawing


class LossPlot:
    """The plot of the losses beside a history, drawn again during the run."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.started = time.perf_counter()
        self.drawing_seconds = 0.5  # spent so far, and expected of the first plot
        self.has_failed = False

    def refresh(self) -> None:
        """Draw the losses so far as PNG, unless drawing has taken more than its share of the run's time."""
        started = time.perf_counter()
        if self.drawing_seconds <= LARGEST_SHARE * (started - self.started):
            self.draw(("png",))
            self.drawing_seconds += time.perf_counter() - started

    def draw(self, suffixes: Sequence[str] = ("png", "pdf")) -> None:
        """Draw the losses, or say why not: no picture is worth a run or its result."""
        picture = self.history.path.with_name("loss.png")
        try:
            with name_file_in_errors(picture):
                self.history.plot_losses(suffixes)
        except OSError as error:
            if not self.has_failed:
                warn(f"the losses are not drawn: {describe(error)}")
            self.has_failed = True


def plot_runs(folders: Sequence[Path], output: Path, x: str) -> Path:
    """Draw the losses of several runs into one PNG or PDF; the legend has the names of their folders.

    Args:
        folders: output folders of runs, finished or not.
        output: the picture, .png or .pdf; one that is there is replaced.
        x: "steps" or "tokens".

    Raises:
        FileNotFoundError: a folder holds no evaluation.
        ValueError: the picture has another ending.
    """
    if output.suffix not in (".png", ".pdf"):
        raise ValueError(f"{output} is neither .png nor .pdf: name the picture so")
    runs = {}
    key = {"steps": "global_step", "tokens": "tokens_seen"}[x]
    for folder in folders:
        curves = History(folder / "history.jsonl").loss_curves(key)
        if not curves.places:
            raise FileNotFoundError(
                f"{folder} holds no history.jsonl with evaluations: name the --output_dir of a run"
            )
        name = folder.resolve().name
        # Runs of one name in several places are told apart by their paths.
        runs[str(folder) if name in runs else name] = curves
    output.parent.mkdir(parents=True, exist_ok=True)
    return save_figure(runs_figure(runs, x), output.with_suffix(""), (output.suffix[1:],))[0]
