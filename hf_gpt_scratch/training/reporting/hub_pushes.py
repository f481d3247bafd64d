"""Push models to the Hub during and after a run; a failure is a warning and never ends the run."""

import shutil
from pathlib import Path

from hf_gpt_scratch.hub.push import PushProcess, describe_push, prepare_push, push_folder
from hf_gpt_scratch.hub.push_worker import why_no_push
from hf_gpt_scratch.runtime.signals import StopSignals
from hf_gpt_scratch.training.reporting.progress_bar import warn
from hf_gpt_scratch.training.settings import TrainingSettings


def push_result(settings: TrainingSettings, folder: Path) -> list[str]:
    """Push the finished model to the repository of the settings; main process only.

    Returns:
        Lines for the user: the address of the model; or, after a warning, the command to push it again.

    Raises:
        Interrupted: a signal came.
    """
    repo_id = str(settings.push_to_hub)
    private = " --private" if settings.hub_private_repo else ""
    again = (
        f"the model is saved; push it again: hf-gpt-scratch push {folder} {repo_id} "
        f"--revision {settings.hub_revision}{private}"
    )
    try:
        with StopSignals(f"stopped by signal: {again}"):
            pushed = push_folder(
                folder,
                repo_id,
                revision=settings.hub_revision,
                private=settings.hub_private_repo,
                timeout=settings.push_timeout,
            )
    except (ValueError, OSError) as error:
        warn(str(error))
        return [again]
    return describe_push(pushed, folder, repo_id)


def warn_early(settings: TrainingSettings) -> None:
    """Warn at the start of a run of what will make the push at its end fail."""
    if settings.push_to_hub is not None and (problem := why_no_push()):
        warn(f"the result will not be pushed to {settings.push_to_hub}: {problem}")


class BackgroundPushes:
    """Pushes of the unfinished model, one at a time, in the background; main process only."""

    def __init__(self) -> None:
        self.process: PushProcess | None = None
        self.folder: Path | None = None

    @property
    def is_busy(self) -> bool:
        """True while the last push is running and its folder must not change."""
        return self.process is not None and self.process.is_running

    def start(self, folder: Path, settings: TrainingSettings, global_step: int) -> None:
        """Start to push a folder, after a warning if the push before failed."""
        self.report()
        self.folder = folder
        try:
            order = prepare_push(
                folder,
                str(settings.push_to_hub),
                revision=settings.push_steps_revision,
                private=settings.hub_private_repo,
                message=f"Unfinished model after step {global_step}",
                timeout=settings.push_timeout,
            )
            self.process = PushProcess(order, shows_progress=False)  # the run has a bar of its own
        except (ValueError, OSError) as error:
            warn(f"{error}; the run continues")

    def report(self) -> None:
        """Wait until the last push has ended or timed out; warn if it failed."""
        if self.process is None:
            return
        try:
            self.process.wait()
        except OSError as error:
            warn(f"{error}; the run continues")
        self.process = None

    def close(self) -> None:
        """Wait for the last push, and remove its folder."""
        self.report()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
