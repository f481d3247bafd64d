"""Model FLOPs utilization: the part of the device's peak FLOP/s that goes into the model."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass
class ModelFlops:
    """The FLOPs of a token and the peak of the devices."""

    per_token: float  # FLOPs of forward and backward pass
    peak: float  # FLOP/s of all devices together
    measure: Callable[[], float] | None = None  # the peak once more; None: it was given
    measurements_left: int = 3  # each takes 0.3 seconds
    is_raised: bool = False  # a step was faster than any measured peak

    def utilization(self, tokens_per_second: float) -> float:
        """Return the part of the peak that goes into the model, such as 0.4; recomputed activations do not count.

        The peak is measured again where a step is faster, and raised to that of a step that still is, so that the
        part is at most 1.
        """
        reached = tokens_per_second * self.per_token
        if reached > self.peak and self.measure is not None and self.measurements_left:
            self.measurements_left -= 1
            self.peak = max(self.peak, self.measure())
        if reached > self.peak:
            self.peak, self.is_raised = reached, True
        return reached / self.peak


def flops_per_token(model: PreTrainedModel, window_size: int) -> float:
    """Return the FLOPs of training on one token: 6N + 12LHQT (PaLM, arXiv:2204.02311, appendix B).

    HQ is hidden_size. N counts the parameters of matrix products: all but position embeddings and an untied token
    embedding, which are only looked up. As in the paper, attention counts in full, though half of it is masked. A
    frozen parameter has no gradient of its own and counts as 4; before the first layer that is trained, where no
    gradient is needed at all, that is too much.
    """
    head = model.get_output_embeddings()
    looked_up = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)} - {head.weight}
    multiplied = [weight for weight in model.parameters() if weight not in looked_up]
    flops = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in multiplied)
    config = model.config
    return flops + 12 * config.num_hidden_layers * config.hidden_size * window_size
