"""Take optimizer steps in the backward pass, so that only a few gradients are in memory at a time."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from hf_gpt_scratch.training.distributed import is_in_group


class StepsInBackward:
    """Steps each parameter as soon as its gradient is complete, and frees the gradient.

    The weights equal those of a step after the backward pass, since AdamW and Muon treat each parameter alone: to the
    last bit, but for Muon's matrices whose smaller side is at most 16, of which PyTorch multiplies one otherwise than
    a stack in bfloat16. But nothing that needs the whole gradient can happen before: no clipping, no sum over
    micro-batches or processes, no check of a step before it is applied.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer
        self.norms: dict[torch.Tensor, torch.Tensor] = {}
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self.step)

    def step(self, parameter: torch.Tensor) -> None:
        """Step one parameter: the gradients of all others are None, so the optimizer skips them."""
        self.norms[parameter] = torch.linalg.vector_norm(parameter.grad)
        self.optimizer.step()
        parameter.grad = None

    def pop_grad_norm(self) -> torch.Tensor:
        """Return the norm of the whole gradient since the last call, a scalar, computed as `clip_grad_norm_` does."""
        norms = [self.norms[parameter] for parameter in self.parameters if parameter in self.norms]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.norms.clear()
        return norm


def refuse_where_impossible(accelerator: Accelerator) -> None:
    """Refuse a run whose steps cannot be taken in the backward pass.

    Raises:
        ValueError: the run is in a process group, or in fp16, whose gradients have to be scaled back first.
    """
    if is_in_group(accelerator):
        what = f"torchrun or several processes (here {accelerator.num_processes})"
    elif accelerator.mixed_precision == "fp16":
        what = "--mixed_precision fp16"
    else:
        return
    raise ValueError(f"--optimizer_in_backward cannot be used with {what}: leave it out")
