"""Several processes: work of the main one alone, and sharded weights (FSDP2).

Checkpoints and repository folders always hold whole tensors, so they do not depend on the number of processes.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_gpt_scratch.training.peak_flops import product_dtype


Result = TypeVar("Result")


def is_in_group(accelerator: Accelerator) -> bool:
    """Return True if the process is in a process group, even alone (`torchrun --nproc_per_node=1`).

    Accelerate then wraps the model, for example in DDP, which copies every gradient as soon as autograd completes it.
    """
    return accelerator.distributed_type != DistributedType.NO


def on_main_process(accelerator: Accelerator | PartialState, action: Callable[[], Result]) -> Result:
    """Call `action` on the main process and give its result to all. Collective: call on every process.

    Raises:
        ValueError, OSError: on the main process, as `action` raised it.
        SystemExit: on the others, with code 1 and no message: one mistake is reported once.
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
    """Refuse DeepSpeed and other ways of sharding that the launcher was asked for.

    Raises:
        ValueError: it was; the line names the replacement.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(
            "DeepSpeed is not supported, because its weights and optimizer state do not fit these checkpoints: launch "
            "with scripts/configs/fsdp2.yaml, which shards them as well"
        )
    for variable, what in (("MEGATRON_LM", "Megatron-LM"), ("PARALLELISM_CONFIG", "a parallelism config")):
        if os.environ.get(f"ACCELERATE_USE_{variable}", "false").lower() == "true":
            raise ValueError(f"{what} is not supported: launch with scripts/configs/ddp.yaml or fsdp2.yaml")


def complete_fsdp(accelerator: Accelerator) -> None:
    """Enable the FSDP that the launcher was asked for on a CPU too, and keep losses and sums of gradients in float32.

    Accelerate 1.15 silently falls back to DDP on a CPU, though PyTorch shards over gloo as well. In bf16 it also adds
    the gradients of the processes in bf16, and rounds the loss to it: to multiples of 1/16 above 8.

    Raises:
        ValueError: FSDP version 1 was asked for.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("FSDP version 1 is not supported: set fsdp_version: 2, as scripts/configs/fsdp2.yaml does")
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.mixed_precision != "no":
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=product_dtype(accelerator.mixed_precision), reduce_dtype=torch.float32
        )


def unshard(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor that may be sharded. Collective: call on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: dict[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Unshard tensors one after the other. Collective: call on every process.

    Args:
        tensors: named tensors, sharded or not.
        keep: return them; otherwise only one is whole at a time, and the result is empty.
    """
    gathered = {}
    for name, tensor in tensors.items():
        values = unshard(tensor.detach())
        if keep:
            # Whole tensors may not fit on the device together, so each goes to the host at once.
            gathered[name] = values.cpu() if isinstance(tensor, DTensor) else values.contiguous()
    return gathered


def reshard(model: nn.Module) -> None:
    """Leave only the shards of FSDP2's weights, which a forward pass without a backward pass does not do.

    What is written into a weight while it is whole is lost when it is sharded again.
    """
    for module in model.modules():
        if hasattr(module, "reshard"):
            cast(FSDPModule, module).reshard()


def shard_like(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut this process's shard out of whole values, as `like` is sharded, without communication."""
    if not isinstance(like, DTensor) or values.shape != like.shape:  # a counter beside a moment stays as it is
        return values
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shard_optimizer_state(
    state: dict[int, dict[str, torch.Tensor]], optimizer: Optimizer
) -> dict[int, dict[str, torch.Tensor]]:
    """Shard the whole moments of all parameters, by index, as the optimizer's parameters are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        index: {key: shard_like(value, parameters[index]) for key, value in values.items()}
        for index, values in state.items()
    }


def unsharded_model(accelerator: Accelerator, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model that the main process can save: the bare `model` itself, or a copy in host memory.

    It is a copy if weights are sharded or get another dtype. Collective: call on every process; only the main one may
    use the result.
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
