"""Trackers of experiments, through Accelerate: checked before a run, started with it, continued on resume."""

from collections.abc import Sequence

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from .run import Run


PROJECT = "hf_gpt_scratch"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what Accelerate would leave out without a word.

    Raises:
        ValueError: a name is unknown or its package not installed; one line with what to do.
    """
    known = [name for name in LoggerType.list() if name != "all"]
    for name in names:
        if name not in (*known, "all"):
            raise ValueError(f"--report_to {name} is unknown: there is {', '.join(known)}")
        if name != "all" and name not in map(str, get_available_trackers()):
            raise ValueError(f"--report_to {name} needs a package: pip install {name.replace('_', '-')}")


def start_trackers(run: Run) -> None:
    """Start the trackers of a run, or go on with those of a resumed one, under the same name and id.

    Of the steps after the checkpoint, which come again, tensorboard drops the first account and wandb the second;
    trackio keeps both, which have the same values.
    """
    resumed = run.progress.global_step > 0
    first = run.history.rows("run")[0] if run.accelerator.is_main_process else {}
    name = run.output_dir.resolve().name
    config = {key: value for key, value in run.settings.to_dict().items() if isinstance(value, (int, float, str))}
    arguments = {
        "tensorboard": {"purge_step": run.progress.global_step + 1} if resumed else {},
        "trackio": {"name": name, "config": config, "resume": "allow" if resumed else "never"},
        "wandb": {"name": name, "id": first.get("run_id"), "resume": "allow"},
    }
    # tensorboard would write the settings once more, as of another run.
    run.accelerator.init_trackers(PROJECT, config=None if resumed else config, init_kwargs=arguments)
