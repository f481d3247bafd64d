"""Experiment trackers, through Accelerate: checked before a run, started with it, continued on resume."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from hf_gpt_scratch.runtime.cli import describe
from hf_gpt_scratch.training.distributed import on_main_process
from hf_gpt_scratch.training.reporting.history import History
from hf_gpt_scratch.training.settings import TrainingSettings


PROJECT = "hf_gpt_scratch"
# How to start a tracker that needs an account or a server.
REMEDIES = {
    "wandb": "`wandb login`, or WANDB_MODE=offline",
    "comet_ml": "`comet login`, or COMET_START_ONLINE=0",
    "swanlab": "`swanlab login`, or SWANLAB_MODE=local",
    "clearml": "`clearml-init`, or CLEARML_OFFLINE_MODE=1",
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that Accelerate would silently leave out.

    Raises:
        ValueError: a name is unknown or its package not installed; one line with what to do.
    """
    known = [name for name in LoggerType.list() if name != "all"]
    for name in names:
        if name not in (*known, "all"):
            raise ValueError(f"--report_to {name} is unknown: there is {', '.join((*known, 'all', 'none'))}")
        if name != "all" and name not in map(str, get_available_trackers()):
            raise ValueError(f"--report_to {name} needs a package: pip install {name.replace('_', '-')}")


def start_trackers(accelerator: Accelerator, settings: TrainingSettings, history: History, global_step: int) -> None:
    """Start the trackers of a run, or continue those of a resumed one, under the same name and id.

    Steps after the checkpoint are logged twice: tensorboard drops the first record, wandb the second, and trackio
    keeps both, which have the same values. Collective: call on every process.

    Raises:
        ValueError: one does not start, as where nobody is logged in.
    """
    resumed = global_step > 0
    first = history.rows("run")[0] if accelerator.is_main_process else {}
    # trackio knows a run by its name alone, and folders of many runs are called alike.
    name = "-".join((Path(settings.output_dir).resolve().name, first.get("run_id", "")[:8]))
    config = {key: value for key, value in settings.to_dict().items() if isinstance(value, (int, float, str))}
    arguments = {
        "tensorboard": {"purge_step": global_step + 1} if resumed else {},
        "trackio": {"name": name, "config": config, "resume": "allow" if resumed else "never"},
        "wandb": {"name": name, "id": first.get("run_id"), "resume": "allow"},
    }

    def start() -> None:
        try:
            # tensorboard would write the settings of a resumed run again, as of another run.
            accelerator.init_trackers(PROJECT, config=None if resumed else config, init_kwargs=arguments)
        except Exception as error:
            names = list(map(str, accelerator.log_with))
            ways = "".join(f"{name}: {REMEDIES[name]}; " for name in names if name in REMEDIES)
            raise ValueError(
                f"--report_to {' '.join(names)}: a tracker does not start ({describe(error)}): {ways}or leave it out"
            ) from error

    on_main_process(accelerator, start)
