"""Trains several runs one after the other in one group of processes, since starting a group takes seconds.

    accelerate launch --config_file scripts/configs/fsdp2.yaml tests/training/runs_in_one_world.py FOLDER

FOLDER/cases.json lists {"name", "fsdp", "settings"}, and where they apply "copy_of" (a run to go on from, as if killed
after step 3) and "poisoned_step" (whose loss is NaN on the last process). What cannot be read off the output folders
is written to FOLDER/results.json.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.model import linear_cross_entropy
from hf_gpt_scratch.runtime.signals import Stopped, leave_process_group
from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training.settings import TrainingSettings


def local_part(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def describe(run: loop.Run) -> dict:
    model = run.bare_model
    parameters = list(model.parameters())
    return {
        "kind": str(run.accelerator.distributed_type),
        "units": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "is_tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "part": sum(local_part(p).numel() for p in parameters) / sum(p.numel() for p in parameters),
    }


class CountedLoss(linear_cross_entropy.LinearCrossEntropy):
    """The loss without logits, which a head that is not an ordinary matrix would not use."""

    calls = 0

    @classmethod
    def apply(cls, *args: object) -> torch.Tensor:
        cls.calls += 1
        return super().apply(*args)


def note_sums() -> set[str]:
    """The dtypes in which gradients of sharded weights are added up over the processes from now on."""
    dtypes: set[str] = set()

    def noted(add: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            dtypes.add(str(kwargs["input"].dtype))
            return add(*args, **kwargs)

        return call

    for name in ("reduce_scatter_single", "reduce_scatter_tensor"):  # its name in PyTorch now, and before
        if add := getattr(torch.distributed, name, None):
            setattr(torch.distributed, name, noted(add))
    return dtypes


def poison(step: int) -> None:
    """Make the loss of one step NaN on the last process, and on it alone."""
    forward = GPTScratchForCausalLM.forward
    is_last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1

    def poisoned(self: GPTScratchForCausalLM, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)
        if self.training and is_last and run.progress.global_step + 1 == step:
            output.loss = output.loss * math.nan
        return output

    GPTScratchForCausalLM.forward = poisoned


def copy_at_step(source: Path, target: Path, step: int) -> None:
    """Copy a run as if it had been killed after the save of `step`."""
    shutil.copytree(source, target)
    for checkpoint in (target / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def train(case: dict) -> dict:
    if "copy_of" in case and torch.distributed.get_rank() == 0:
        copy_at_step(Path(case["copy_of"]), Path(case["settings"]["output_dir"]), step=3)
    torch.distributed.barrier()
    os.environ["ACCELERATE_USE_FSDP"] = str(case["fsdp"]).lower()
    set_up, forward = loop.set_up, GPTScratchForCausalLM.forward

    def kept_set_up(*args: object) -> loop.Run:
        global run
        run = set_up(*args)
        if "poisoned_step" in case:
            poison(case["poisoned_step"])
        return run

    loop.set_up = kept_set_up
    CountedLoss.calls = 0
    sums.clear()
    try:
        result = {"skipped_steps": loop.train(TrainingSettings(**case["settings"])).skipped_steps}
    except Stopped as stop:
        result = {"stopped": str(stop)}
    finally:
        loop.set_up, GPTScratchForCausalLM.forward = set_up, forward
    result |= describe(run) | {"losses_without_logits": CountedLoss.calls, "sums": sorted(sums)}
    torch.distributed.barrier()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return result


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    os.environ["FORK_LAUNCHED"] = "1"  # Accelerate then leaves the group of processes as it is
    torch.distributed.init_process_group("gloo")
    linear_cross_entropy.LinearCrossEntropy = CountedLoss
    sums = note_sums()
    results = {case["name"]: train(case) for case in json.loads((folder / "cases.json").read_text(encoding="utf-8"))}
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    leave_process_group()
