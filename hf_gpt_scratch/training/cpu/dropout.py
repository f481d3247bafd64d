"""Dropout masks on a CPU, drawn faster than PyTorch does, and drawn again from their seed.

NumPy's generator SFC64 draws sixteen bits for each element. Each mask has its own seed, drawn from PyTorch's
generator: restoring that (from a checkpoint, or when activations are recomputed) restores the masks.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch


STEPS = 2**16  # a probability is rounded to multiples of 1 / STEPS


class DropoutMasks:
    """Masks of one seed; another instance with the same seed draws the same masks in the same order.

    Args:
        p: probability of a zero.
        seed: of the masks; None: drawn from PyTorch's generator.
    """

    def __init__(self, p: float, seed: int | None = None) -> None:
        self.seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        self.draws = np.random.SFC64(self.seed)
        self.num_dropped = min(round(p * STEPS), STEPS - 1)
        self.scale = STEPS / (STEPS - self.num_dropped)  # factor of the elements that are kept, so that the mean stays

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        """Draw zeros and ones of a shape, as uint8, because multiplying by bool is slow."""
        size = math.prod(shape)
        bits = self.draws.random_raw(-(-size // 4)).view(np.uint16)[:size]
        return torch.from_numpy((bits >= self.num_dropped).view(np.uint8)).view(*shape)
