"""The rules of `--minutes` for layers, width, heads, vocabulary, context, dropout, batch and learning rate.

Pure functions of the text's length and the compute, which `choose_settings.py` measures. They are fitted to recorded
sweeps: scripts/benchmarks/results/README.md, "What the minutes choose".
"""

import math
from dataclasses import dataclass

from hf_gpt_scratch.training.settings import HEAD_WIDTH, fitting_heads


# The unit of compute of the rules: one core for a minute, at its speed in a large product.
UNIT_FLOPS = 1e13
# Exponents of DeepSeek LLM (arXiv:2401.02954, section 3.1), by which batch and rate follow the compute.
BATCH_EXPONENT, RATE_EXPONENT = 0.3271, -0.1250
UNIT_TOKENS, UNIT_RATE = 768, 0.02  # of a step
MOMENTUM = 0.9  # of Muon, which learns faster with it than with 0.95 in runs of minutes: `training/README.md`
UNIT_CONTEXT, CONTEXT_EXPONENT, MOST_CONTEXT = 64, 0.25, 1024
# 20 tokens for each parameter of the layers (arXiv:2203.15556), 6 FLOPs for each of both.
USED_SHARE, TOKENS_OF_PARAMETER = 0.25, 20  # the part of the FLOPs that goes into the model
PARAMETERS_OF_BYTE = 10  # of text at most: nanoGPT's recipe of a card has 10.6 million for the 1.1 MB of its text
WIDTH_OF_LAYER, LEAST_LAYERS, MOST_WIDTH = 64, 2, 1600
LEAST_WIDTH_OF_FULL_HEADS = LEAST_WIDTH_IN_BF16 = 256
# Tokens of a vocabulary: of a text of 1 MB, and of a head with at most so many parameters for one of the layers.
MEGABYTE_TOKENS, TOKENS_EXPONENT, HEAD_SHARE, LEAST_TOKENS, MOST_TOKENS = 5400, 0.45, 6, 512, 32768
DROPOUT_OF_DOUBLING, PASSES_WITHOUT, MOST_DROPOUT = 0.1, 3.0, 0.6
PASSES_TO_THE_BEST = 16  # from which on the validation loss may rise before the end


@dataclass(frozen=True)
class Budget:
    """The text and the compute that a run has."""

    num_bytes: int  # of the training text
    sample: str  # its beginning; of prepared tokens, nothing
    flops: float  # that its devices would do in its minutes, at their speed in a large product

    @property
    def scale(self) -> float:
        """The compute in `UNIT_FLOPS`."""
        return self.flops / UNIT_FLOPS


def model_shape(budget: Budget, layers: int | None = None, heads: int = 1) -> tuple[int, int]:
    """Return layers and width of the model that learns most of the text in so many FLOPs.

    Args:
        budget: of the run.
        layers: of the model; None: more for a wider one.
        heads: of a layer, by which the width can be divided.
    """
    by_flops = math.sqrt(USED_SHARE * budget.flops / (6 * TOKENS_OF_PARAMETER))
    parameters = max(1.0, min(by_flops, PARAMETERS_OF_BYTE * budget.num_bytes))
    widths = [width for width in range(1, MOST_WIDTH + 1) if width % math.lcm(width_of_head(width), heads) == 0]
    shapes = [(layers or layers_for(width), width) for width in widths or [heads]]
    return min(shapes, key=lambda shape: abs(math.log(12 * shape[0] * shape[1] ** 2 / parameters)))


def layers_for(width: int) -> int:
    """Return the layers of a model of a width."""
    return max(LEAST_LAYERS, round(width / WIDTH_OF_LAYER))


def width_of_head(width: int) -> int:
    """Return the width of a head: 32 in a small model, else 64 as in GPT-2."""
    return HEAD_WIDTH if width >= LEAST_WIDTH_OF_FULL_HEADS else HEAD_WIDTH // 2


def heads_for(width: int) -> int:
    """Return the heads of a layer that has a width."""
    of_head = width_of_head(width)
    return width // of_head if width % of_head == 0 else fitting_heads(width)


def context_length(scale: float) -> int:
    """Return the context of a model that is trained with this much compute, in `UNIT_FLOPS`: a power of two."""
    return min(MOST_CONTEXT, UNIT_CONTEXT * 2 ** max(0, round(CONTEXT_EXPONENT * math.log2(scale))))


def vocabulary_size(budget: Budget, layers: int, width: int) -> int:
    """Return the tokens of a vocabulary that suits the length of the text and the model: a power of two."""
    by_text = MEGABYTE_TOKENS * (budget.num_bytes / 1e6) ** TOKENS_EXPONENT
    by_model = HEAD_SHARE * 12 * layers * width
    return min(MOST_TOKENS, max(LEAST_TOKENS, 2 ** int(math.log2(max(1.0, min(by_text, by_model))))))


def dropout_for(passes: float) -> float:
    """Return the dropout of a run that sees its text so often: more with each doubling, in steps of 0.05."""
    doublings = math.log2(max(1.0, passes / PASSES_WITHOUT))
    return round(20 * min(MOST_DROPOUT, DROPOUT_OF_DOUBLING * doublings)) / 20


def windows_a_step(scale: float, window_size: int) -> float:
    """Return the windows of a step of a run with this much compute, in `UNIT_FLOPS`: larger steps, not only more."""
    return UNIT_TOKENS * max(1.0, scale) ** BATCH_EXPONENT / window_size


def peak_rate(scale: float) -> float:
    """Return Muon's learning rate for this much compute, in `UNIT_FLOPS`, to two digits."""
    return float(f"{UNIT_RATE * max(1.0, scale) ** RATE_EXPONENT:.2g}")
