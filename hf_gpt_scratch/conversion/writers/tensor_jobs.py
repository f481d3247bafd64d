"""How the values of our tensors are made from those of a source: cut, turned, or zero, one source tensor a job."""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import numpy as np

from hf_gpt_scratch.conversion.mapping import Layout, Move, Plan
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors, Shape, free_pages
from hf_gpt_scratch.conversion.writers.parallel_writer import PIECE_BYTES, Buffer
from hf_gpt_scratch.conversion.writers.safetensors_files import Job


TURNED_BYTES = 16 << 20  # the largest matrix that is turned in one piece: that of the 355M model
TILE_ROWS = 64
SPACING = 32  # values, two cache lines of float32


def plan_jobs(plan: Plan, tensors: NamedTensors) -> list[Job]:
    """The jobs that together make every target of a plan."""
    moves = [partial(move_values, tensors, move, plan.shapes) for move in plan.moves]
    return moves + [partial(zero_values, name, plan.shapes[name]) for name in plan.zeros]


def move_values(
    tensors: NamedTensors, move: Move, shapes: Mapping[str, Shape], buffer: Buffer
) -> Iterator[tuple[str, np.ndarray]]:
    """Make the targets of one source tensor: (target, next values), each array valid until the next is asked for."""
    if move.layout is Layout.LINEAR:
        return copied_rows(tensors, move, shapes, buffer)
    return turned_parts(tensors, move, buffer)


def copied_rows(
    tensors: NamedTensors, move: Move, shapes: Mapping[str, Shape], buffer: Buffer
) -> Iterator[tuple[str, np.ndarray]]:
    """Cut a source along its first axis, some rows at a time; rows beyond a target's are padding and left out."""
    (num_rows, *row), dtype = tensors.shapes[move.source], tensors.dtypes[move.source]
    part = num_rows // len(move.targets)
    step = max(1, PIECE_BYTES // max(1, math.prod(row) * dtype.itemsize))
    cuts = [(target, start) for target in move.targets for start in range(0, part, step)]
    pieces = (buffer.empty((min(step, part - start), *row), dtype) for _, start in cuts)
    for piece, (target, start) in zip(tensors.read_into(move.source, pieces), cuts, strict=True):
        yield target, piece[: max(0, shapes[target][0] - start)]


def turned_parts(tensors: NamedTensors, move: Move, buffer: Buffer) -> Iterator[tuple[str, np.ndarray]]:
    """Transpose a source [in, n * out] or [1, in, n * out], and cut it."""
    (rows, columns), dtype = tensors.shapes[move.source][-2:], tensors.dtypes[move.source]
    if rows * columns * dtype.itemsize > TURNED_BYTES:
        yield from turned_stripes(tensors, move, buffer)
        return
    turned = buffer.empty((columns, rows), dtype)
    tile = np.empty((TILE_ROWS, columns), dtype)
    pieces = (tile[: rows - start] for start in range(0, rows, TILE_ROWS))
    turn(tensors.read_into(move.source, pieces), turned)
    yield from zip(move.targets, np.split(turned, len(move.targets)), strict=True)


def turned_stripes(tensors: NamedTensors, move: Move, buffer: Buffer) -> Iterator[tuple[str, np.ndarray]]:
    """Do the same to a source that is too large to be held, some columns at a time, each a part of every row."""
    values = tensors[move.source].reshape(tensors.shapes[move.source][-2:])
    rows, columns = values.shape
    part = columns // len(move.targets)
    step = max(1, TURNED_BYTES // (rows * values.itemsize))
    for index, target in enumerate(move.targets):
        for start in range(0, part, step):
            stripe = values[:, index * part : (index + 1) * part][:, start : start + step]
            turned = buffer.empty(stripe.shape[::-1], values.dtype)
            turn(tiles_of(stripe), turned)
            yield target, turned


def tiles_of(stripe: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows of a stripe at a time, whose memory is given back where they lie in a file."""
    for start in range(0, len(stripe), TILE_ROWS):
        yield stripe[start : start + TILE_ROWS]
        free_pages(stripe)


def turn(tiles: Iterable[np.ndarray], turned: np.ndarray) -> None:
    """Fill a matrix with the transposed rows of tiles, each of them while it is in the cache.

    numpy walks down whole columns, whose values all fall on the same few sets of the cache where a row is a multiple
    of a page. Here some rows at a time lie a little further apart, which is two to three times as fast.
    """
    columns = len(turned)
    spaced = np.empty((TILE_ROWS, columns + SPACING), turned.dtype)[:, :columns]
    start = 0
    for tile in tiles:
        spaced[: len(tile)] = tile
        turned[:, start : start + len(tile)] = spaced[: len(tile)].T
        start += len(tile)


def zero_values(name: str, shape: Shape, buffer: Buffer) -> Iterator[tuple[str, np.ndarray]]:
    """A target that the source does not have."""
    yield name, np.zeros(shape, np.float32)
