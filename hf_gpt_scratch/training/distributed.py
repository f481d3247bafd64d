"""Several processes: what only the main one does, and weights that are spread over them (FSDP2).

A checkpoint and a repository folder always hold whole tensors, so that neither depends on how many processes wrote it.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel


Result = TypeVar("Result")


def is_in_group(accelerator: Accelerator) -> bool:
    """Whether the process is in a process group, be it alone there (`torchrun --nproc_per_node=1`): Accelerate wraps
    the model then, in DDP for one, which copies every gradient away and back as soon as autograd calls it complete.
    """
    return accelerator.distributed_type != DistributedType.NO


def on_main_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Call `action` on the main process and give its result to all; every process calls this.

    Raises:
        ValueError, OSError: on the main process, what `action` raised.
        SystemExit: on the others, with code 1 and without a word: one mistake is reported once.
    """
    result, failure = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except (ValueError, OSError) as error:
            failure = error
    result, failed = broadcast_object_list([result, failure is not None])
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(1)
    return result


def refuse_deepspeed() -> None:
    """Stop before anything is set up if the launcher was asked for DeepSpeed, or for splitting of another kind.

    Raises:
        ValueError: it was; the line names what to use instead.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(
            "DeepSpeed is not supported, because its weights and optimizer state do not fit these checkpoints: launch "
            "with scripts/configs/fsdp2.yaml, which spreads them as well"
        )
    for variable, what in (("MEGATRON_LM", "Megatron-LM"), ("PARALLELISM_CONFIG", "a parallelism config")):
        if os.environ.get(f"ACCELERATE_USE_{variable}", "false").lower() == "true":
            raise ValueError(f"{what} is not supported: launch with scripts/configs/ddp.yaml or fsdp2.yaml")


def complete_fsdp(accelerator: Accelerator) -> None:
    """Give the FSDP that the launcher was asked for to processes on a CPU too.

    Accelerate 1.15 hears of it there, says nothing and goes on with DDP, though PyTorch shards over gloo as well. What
    is set here is what Accelerate sets for GPUs.

    Raises:
        ValueError: FSDP version 1 was asked for.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("FSDP version 1 is not supported: set fsdp_version: 2, as scripts/configs/fsdp2.yaml does")


def unshard(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be spread; to be called by all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: dict[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Make spread tensors whole, one after the other; to be called by all processes.

    Args:
        tensors: named tensors, spread or not.
        keep: whether this process needs them; where not, no more than one is whole at a time and {} is returned.
    """
    gathered = {}
    for name, tensor in tensors.items():
        values = unshard(tensor.detach())
        if keep:
            # What was spread may fill a device when it is whole; it goes to the host at once.
            gathered[name] = values.cpu() if isinstance(tensor, DTensor) else values.contiguous()
    return gathered


def shard_like(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut this process's part out of whole values, as `like` is cut; without messages between the processes."""
    if not isinstance(like, DTensor) or values.shape != like.shape:  # a counter beside a moment stays as it is
        return values
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def spread_optimizer_state(
    state: dict[int, dict[str, torch.Tensor]], optimizer: Optimizer
) -> dict[int, dict[str, torch.Tensor]]:
    """Cut the whole moments of all parameters, by index, as the optimizer's parameters are cut."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        index: {key: shard_like(value, parameters[index]) for key, value in values.items()}
        for index, values in state.items()
    }


def unsharded_model(accelerator: Accelerator, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model that the main process can save: the bare `model` itself, or a copy in host memory.

    It is a copy where weights are spread, or are to have another dtype. To be called by all processes; what the others
    get is not to be used.
    """
    if not accelerator.is_fsdp2 and model.dtype == dtype:
        return model
    state = accelerator.get_state_dict(model) if accelerator.is_fsdp2 else model.state_dict()
    if not accelerator.is_main_process:
        return model
    state = {name: values.to("cpu", dtype) for name, values in state.items()}
    with torch.device("meta"):
        copy = AutoModelForCausalLM.from_config(deepcopy(model.config), dtype=dtype)
    copy.load_state_dict(state, assign=True)
    copy.tie_weights()
    return copy
