"""Muon for the hidden matrices and AdamW for the rest, as one optimizer with one state."""

from collections.abc import Callable

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Muon on some parameter groups and AdamW on the others; both step together.

    Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/; `torch.optim.Muon`) makes the update of a matrix
    orthogonal. Here its updates are scaled to the size of AdamW's (arXiv:2502.16982, section 2.2), so that one
    learning rate and one weight decay serve both.

    Args:
        muon_groups: groups of matrices, each a dict of `params` and `weight_decay`.
        adamw_groups: groups of all other parameters, the same.
        lr: learning rate of all groups.
        **adamw: further arguments of AdamW.
    """

    def __init__(self, muon_groups: list[dict], adamw_groups: list[dict], lr: float, **adamw: object) -> None:
        self.muon = Muon(muon_groups, lr=lr, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(adamw_groups, lr=lr, **adamw)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update all parameters once; a closure is not supported."""
        cut = len(self.muon.param_groups)
        # Loading a state or preparing for a device replaces groups and state, so they are handed on at each step.
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:cut], self.param_groups[cut:]
        for optimizer in (self.muon, self.adamw):
            optimizer.state = self.state
            optimizer.step()
