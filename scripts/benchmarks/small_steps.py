"""Steps of small models in whole training commands: nanoGPT's, ours with AdamW, and ours with Muon.

Every candidate trains twice, without an evaluation between its first and its last step: the difference of the two wall
times over that of the steps is the time of a step with all that the command does for it, and without start and end.
Reports have that of a hundred steps.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .benchmark import Benchmark
from .measuring import Measurement, build_report, compare, describe_limit, interleave, measure, ratios
from .time_to_loss import CONTEXT, OURS_FLAGS, RECIPE, prepare_nanogpt, train_ours


if TYPE_CHECKING:
    import argparse

NEVER = "1000000"
STEPS = 100  # of a report
NANOGPT, OURS, MUON = "nanoGPT", "ours", "ours, Muon"


@dataclass(frozen=True)
class Setting:
    """Sizes of the model, rows of the batch, and the steps of the two runs."""

    layers: int
    width: int
    heads: int
    batch: int
    few_steps: int = 200
    many_steps: int = 1200

    @property
    def text(self) -> str:
        """The sizes, in words."""
        return f"{self.layers} layers of {self.width}, {self.batch} x {CONTEXT} tokens, {STEPS} steps"


SETTINGS = {
    "4x128": Setting(4, 128, 4, 12),
    "2x64": Setting(2, 64, 4, 8),
    "tiny": Setting(1, 32, 2, 2, few_steps=2, many_steps=6),
}


class SmallSteps(Benchmark):
    """Settings with a report each. Our model is over 257 bytes, nanoGPT's over the characters of the text."""

    help = "a step of small models within whole training commands, against nanoGPT"
    packages = ("torch", "transformers", "accelerate")
    needs = ("nanogpt", "text")

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add the text and the settings."""
        parser.add_argument("--text", type=Path, metavar="FILE", help="text to train on, such as Tiny Shakespeare")
        parser.add_argument(
            "--settings", nargs="+", choices=SETTINGS, default=["4x128", "2x64"], help="default: 4x128 2x64"
        )

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Train each candidate with few and with many steps in each round.

        Yields:
            The report of each setting.

        Raises:
            ValueError: nanoGPT is another one, or a candidate fails.
        """
        text, threads = arguments.text.resolve(), arguments.threads
        for name in arguments.settings:
            setting, machine = SETTINGS[name], self.describe_machine(arguments)
            with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as folder_name:
                folder = Path(folder_name)
                copied = prepare_nanogpt(arguments.nanogpt, text, folder)
                trainings: dict[str, Callable[[int], Measurement]] = {
                    NANOGPT: partial(train_nanogpt, setting, copied, threads),
                    OURS: partial(train_our_model, setting, text, folder / "run", threads, "adamw_torch_fused"),
                    MUON: partial(train_our_model, setting, text, folder / "run", threads, "muon"),
                }
                samplers = {name: partial(measure_steps, setting, train) for name, train in trainings.items()}
                results = interleave(samplers, arguments.rounds)
            limits = [
                describe_limit("nanoGPT / ours", ratios(results, "wall", NANOGPT, OURS), "at least", 1.3),
                describe_limit("ours, Muon / ours", ratios(results, "wall", MUON, OURS), "at most", 1.15),
            ]
            comparisons = list(compare(results, "wall", OURS))
            yield build_report(
                "small_steps", setting.text, machine, results, part=name, comparisons=comparisons, limits=limits
            )


def measure_steps(setting: Setting, train: Callable[[int], Measurement]) -> Measurement:
    """Return the cost of `STEPS` steps, from a training of few and one of many of them."""
    few, many = train(setting.few_steps), train(setting.many_steps)
    scale = STEPS / (setting.many_steps - setting.few_steps)
    return Measurement(scale * (many.cpu - few.cpu), scale * (many.wall - few.wall), many.memory)


def train_nanogpt(setting: Setting, copied: Path, threads: int, steps: int) -> Measurement:
    """Run nanoGPT's recipe for a CPU in the sizes of a setting; it evaluates before the first step alone."""
    sizes = {"n_layer": setting.layers, "n_embd": setting.width, "n_head": setting.heads, "batch_size": setting.batch}
    recipe = RECIPE | {"max_iters": steps, "eval_interval": NEVER, "eval_iters": "1"} | sizes
    options = [f"--{name}={value}" for name, value in recipe.items()]
    command = ["env", "-C", copied, f"OMP_NUM_THREADS={threads}", sys.executable, "train.py"]
    return measure([*command, "config/train_shakespeare_char.py", *options])


def train_our_model(
    setting: Setting, text: Path, output: Path, threads: int, optimizer: str, steps: int
) -> Measurement:
    """Run our training script in the sizes of a setting, and remove what it wrote."""
    flags = OURS_FLAGS | {
        "num_hidden_layers": str(setting.layers),
        "hidden_size": str(setting.width),
        "num_attention_heads": str(setting.heads),
        "per_device_train_batch_size": str(setting.batch),
        "optim": optimizer,
        "max_steps": str(steps),
        "warmup_steps": "1",
        "eval_steps": NEVER,
    }
    measured = train_ours(text, output, minutes=0.0, seed=1, threads=threads, given=flags)  # max_steps bounds it
    shutil.rmtree(output)
    return measured
