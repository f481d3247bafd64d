"""Muon for the matrices of the layers, those of one shape together, beside AdamW for everything else."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer


# Elements of a stack. Larger matrices fill a processor one at a time, and a longer stack would only take memory.
MOST_ELEMENTS = 2**18


class StackedMuon(Muon):
    """`torch.optim.Muon`, with matrices of one shape made orthogonal together: its groups, state and formulas.

    On a small model it spends more time on calls than on products, several for each matrix and iteration; a stack of
    matrices takes as many calls as one of them. Updates differ from PyTorch's by the rounding of bfloat16, in which
    both iterate. Sharded matrices (FSDP2) are left to PyTorch, one after the other.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        """Update all matrices that have a gradient once."""
        matrices = [matrix for group in self.param_groups for matrix in group["params"] if matrix.grad is not None]
        if any(isinstance(matrix, DTensor) for matrix in matrices):
            super().step()
            return
        for group in self.param_groups:
            for stack in stacks([matrix for matrix in group["params"] if matrix.grad is not None]):
                self._update(stack, group)

    def _update(self, matrices: Sequence[torch.Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape, or of its transpose."""
        directions = []
        for matrix in matrices:
            state, gradient = self.state[matrix], cast(torch.Tensor, matrix.grad)
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            directions.append(lying(direction.bfloat16()))
        updates = orthogonalized(torch.stack(directions), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * math.sqrt(max(matrices[0].shape))  # as AdamW's: arXiv:2502.16982, section 2.2
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            lying(matrix).add_(update, alpha=-rate)


def stacks(matrices: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield matrices of one shape, or of its transpose, together, as many as have `MOST_ELEMENTS`; at least one."""
    of_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for matrix in matrices:
        of_shape.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
    for shape, alike in of_shape.items():
        size = max(1, MOST_ELEMENTS // math.prod(shape))
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def lying(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix with at least as many columns as rows: itself, or a view of it transposed."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def orthogonalized(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], num_iterations: int, eps: float
) -> torch.Tensor:
    """Replace the singular values of matrices [N, rows, columns], rows <= columns, by values around 1.

    The Newton-Schulz iteration of https://kellerjordan.github.io/posts/muon/, in the dtype of the matrices: with
    `coefficients` a, b, c and gram = X X^T it maps X to (a + b gram + c gram^2) X.
    """
    a, b, c = coefficients
    iterate = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_iterations):
        gram = iterate @ iterate.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        iterate = torch.baddbmm(iterate, factor, iterate, beta=a)
    return iterate


class MuonWithAdamW(Optimizer):
    """Muon on some parameter groups and AdamW on the others; both step together.

    Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/; `torch.optim.Muon`) makes the update of a matrix
    orthogonal. Here its updates are scaled to the size of AdamW's (arXiv:2502.16982, section 2.2), so that one
    learning rate and one weight decay serve both.

    Args:
        muon_groups: groups of matrices, each a dict of `params` and `weight_decay`.
        adamw_groups: groups of all other parameters, the same.
        lr: learning rate of all groups.
        momentum: decay of Muon's mean of the gradients.
        **adamw: further arguments of AdamW.
    """

    def __init__(
        self,
        muon_groups: list[dict[str, Any]],
        adamw_groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        **adamw: Any,
    ) -> None:
        self.muon = StackedMuon(muon_groups, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(adamw_groups, lr=lr, **adamw)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        """Update all parameters once."""
        cut = len(self.muon.param_groups)
        # Loading a state or preparing for a device replaces groups and state, so they are handed on at each step.
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:cut], self.param_groups[cut:]
        for optimizer in (self.muon, self.adamw):
            optimizer.state = self.state
            optimizer.step()
