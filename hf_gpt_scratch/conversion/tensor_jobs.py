"""How the values of our tensors are made from those of a source: cut, turned, or zero, one source tensor a job."""

import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from .mapping import Layout, Move, Plan
from .named_tensors import NamedTensors, Shape
from .parallel_writer import PIECE_BYTES, Buffer
from .safetensors_files import Job


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
    """Transpose a source [in, n * out] or [1, in, n * out] while its rows are in the cache, and cut it.

    numpy walks down whole columns, whose values all fall on the same few sets of the cache where a row is a multiple
    of a page. Here some rows at a time lie a little further apart, which is two to three times as fast.
    """
    (rows, columns), dtype = tensors.shapes[move.source][-2:], tensors.dtypes[move.source]
    turned = buffer.empty((columns, rows), dtype)
    tile = np.empty((TILE_ROWS, columns), dtype)
    spaced = np.empty((TILE_ROWS, columns + SPACING), dtype)[:, :columns]
    starts = range(0, rows, TILE_ROWS)
    pieces = (tile[: rows - start] for start in starts)
    for piece, start in zip(tensors.read_into(move.source, pieces), starts, strict=True):
        spaced[: len(piece)] = piece
        turned[:, start : start + TILE_ROWS] = spaced[: len(piece)].T
    yield from zip(move.targets, np.split(turned, len(move.targets)), strict=True)


def zero_values(name: str, shape: Shape, buffer: Buffer) -> Iterator[tuple[str, np.ndarray]]:
    """A target that the source does not have."""
    yield name, np.zeros(shape, np.float32)
