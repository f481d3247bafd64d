"""The values of our tensors from those of a source: split, transposed, or zero, in blocks of bounded memory."""

from collections.abc import Iterator

import numpy as np

from hf_gpt_scratch.conversion.mapping import Layout, MappingPlan
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors, free_pages


BLOCK_BYTES = 1 << 20


def tensor_blocks(plan: MappingPlan, tensors: NamedTensors) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (target, next values) for every target of a plan; each array is valid until the next one is asked for."""
    for move in plan.moves:
        values = tensors[move.source]
        if move.layout is not Layout.LINEAR:
            values = values.reshape(values.shape[-2:]).T  # [n * out, in]
        for target, part in zip(move.targets, np.split(values, len(move.targets)), strict=True):
            # Rows of a vocabulary beyond the target's are left out.
            yield from ((target, block) for block in row_blocks(part[: plan.shapes[target][0]]))
    for name in plan.zeros:
        yield name, np.zeros(plan.shapes[name], np.float32)


def row_blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array as C-contiguous blocks of rows, about `BLOCK_BYTES` each; mapped pages are released after use."""
    step = max(1, BLOCK_BYTES * len(values) // max(1, values.nbytes))
    for start in range(0, len(values), step):
        yield np.ascontiguousarray(values[start : start + step])
        free_pages(values)
