"""Dropout on a CPU in a quarter of the time: PyTorch's draws its mask slowly, element by element.

Here numpy's generator SFC64 draws it, sixteen bits for an element. Each mask has a seed of its own, drawn from
PyTorch's generator: so what puts that back (a checkpoint, activations computed again) brings the same masks back.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel


STEPS = 2**16  # a probability is rounded to multiples of 1 / STEPS


class DropoutMasks:
    """Masks of one seed, in the order of the calls; another instance with this one's seed draws the same again.

    Args:
        p: probability of a zero.
        seed: none: drawn from PyTorch's generator.
    """

    def __init__(self, p: float, seed: int | None = None) -> None:
        self.seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        self.draws = np.random.SFC64(self.seed)
        self.num_dropped = min(round(p * STEPS), STEPS - 1)
        self.scale = STEPS / (STEPS - self.num_dropped)  # of what is kept, so that the mean stays

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw zeros and ones of a shape, as uint8: a product with those is fast, with bool it is not."""
        size = math.prod(shape)
        bits = self.draws.random_raw(-(-size // 4)).view(np.uint16)[:size]
        return torch.from_numpy((bits >= self.num_dropped).view(np.uint8)).view(*shape)


class DropoutFunction(torch.autograd.Function):
    """`nn.functional.dropout` of inputs of any shape."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, p: float) -> torch.Tensor:
        """Compute a tensor of the same shape."""
        masks = DropoutMasks(p)
        mask = masks.draw(inputs.shape)
        ctx.save_for_backward(mask)
        ctx.scale = masks.scale
        return (inputs * mask).mul_(masks.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Compute the gradient of the inputs."""
        (mask,) = ctx.saved_tensors
        return (grad * mask).mul_(ctx.scale), None


class FastDropout(nn.Dropout):
    """An `nn.Dropout` that draws with `DropoutMasks`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute a tensor of the same shape; as given outside training."""
        return DropoutFunction.apply(input, self.p) if self.training and self.p > 0 else input


def use_fast_dropout(model: PreTrainedModel) -> None:
    """Have the dropout modules of a model on a CPU draw with `DropoutMasks`."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout
