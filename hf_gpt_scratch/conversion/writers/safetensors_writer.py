"""safetensors files written block by block with numpy only, sharded as transformers does.

Format: https://huggingface.co/docs/safetensors, a header in JSON before the raw little-endian values.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hf_gpt_scratch.conversion.readers.named_tensors import Shape
from hf_gpt_scratch.conversion.readers.safetensors_reader import INDEX_FILE, STORED, WEIGHTS_FILE
from hf_gpt_scratch.runtime.files import name_file_in_errors, write_json


def num_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of a tensor in a file."""
    return math.prod(shape) * np.dtype(STORED[dtype][1]).itemsize


def cast(block: np.ndarray, dtype: str) -> np.ndarray:
    """Round to nearest, ties to even, bfloat16 as uint16; OverflowError for a finite value that becomes infinite."""
    if dtype == "float32":
        return block.astype("<f4", copy=False)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            rounded = block.astype("<f2", copy=False)
        if np.isinf(rounded).any() and (np.isinf(rounded) & np.isfinite(block)).any():
            raise OverflowError
        return rounded
    bits = np.ascontiguousarray(block, dtype="<f4").view("<u4")
    # Adding just under half of the last kept place, and one more where that place is odd, carries as rounding does.
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    if not np.isfinite(block).all():
        rounded = np.where(np.isnan(block), ((bits >> np.uint32(16)) | np.uint32(0x40)).astype("<u2"), rounded)
    if ((rounded & 0x7FFF == 0x7F80) & np.isfinite(block)).any():
        raise OverflowError
    return rounded


def begin_file(path: Path, shapes: Mapping[str, Shape], dtype: str) -> dict[str, tuple[Path, int]]:
    """Create a file that holds the header only, and return for each tensor the file and where it ends there."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + num_bytes(shape, dtype)
        header[name] = {"dtype": STORED[dtype][0], "shape": list(shape), "data_offsets": [start, end]}
        ends[name] = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with name_file_in_errors(path), path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
    return {name: (path, 8 + len(text) + end) for name, end in ends.items()}


def split_into_files(sizes: Mapping[str, int], max_shard_size: int) -> dict[str, list[str]]:
    """Fill one file after the other, and name them; a tensor above `max_shard_size` bytes gets a file of its own."""
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > max_shard_size:
            shards.append([])
        shards[-1].append(name)
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, 1)}


def write_model(
    folder: Path,
    shapes: Mapping[str, Shape],
    blocks: Iterable[tuple[str, np.ndarray]],
    dtype: str,
    max_shard_size: int,
) -> list[Path]:
    """Write one file, or several of at most `max_shard_size` bytes and the index that transformers reads; return them.

    `blocks` are (name, next values), C-contiguous float32 or float16: together all values of `shapes`, each in order.
    ValueError: a value is too large for the dtype; OSError: the disk is full or cannot be written.
    """
    left = {name: num_bytes(shape, dtype) for name, shape in shapes.items()}
    files = split_into_files(left, max_shard_size)
    if len(files) > 1:
        metadata = {"total_parameters": sum(map(math.prod, shapes.values())), "total_size": sum(left.values())}
        weight_map = {name: file_name for file_name, names in files.items() for name in names}
        write_json(folder / INDEX_FILE, {"metadata": metadata, "weight_map": weight_map})
    places: dict[str, tuple[Path, int]] = {}
    for file_name, names in files.items():
        places |= begin_file(folder / file_name, {name: shapes[name] for name in names}, dtype)
    for name, values in blocks:
        try:
            stored = cast(values, dtype)
        except OverflowError:
            raise ValueError(f"{name} has values too large for {dtype}: use --dtype float32 or bfloat16") from None
        path, end = places[name]
        if stored.nbytes > left[name]:
            raise RuntimeError(f"{name} got more values than it has")
        with name_file_in_errors(path), path.open("r+b") as file:
            file.seek(end - left[name])
            file.write(stored.data)
        left[name] -= stored.nbytes
    if short := [name for name, count in left.items() if count]:
        raise RuntimeError(f"{', '.join(short[:8])} got too few values")
    return [folder / file_name for file_name in files]
