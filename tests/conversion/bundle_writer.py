"""Writes tensor bundles for tests, also such as TensorFlow never writes.

It is held against TensorFlow's own reader in test_tensor_bundle.py.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import numpy as np


# Arguments of `gpt2_shapes`, and the hparams.json that goes with them.
TINY = {"hidden_size": 8, "num_layers": 2, "vocab_size": 11, "context_length": 6}
TINY_HPARAMS = {"n_vocab": 11, "n_ctx": 6, "n_embd": 8, "n_head": 2, "n_layer": 2}

DTYPE_NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}


def varint(number: int) -> bytes:
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def masked_crc32c(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF


def block(entries: list[tuple[bytes, bytes]], restart_interval: int = 4) -> bytes:
    content, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_interval == 0:
            restarts.append(len(content))
        else:
            shared = next((n for n, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), len(last))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return content + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def with_trailer(content: bytes, compression: int = 0) -> bytes:
    kind = bytes([compression])
    return content + kind + masked_crc32c(content + kind).to_bytes(4, "little")


def table(entries: Mapping[bytes, bytes], entries_per_block: int = 5, compression: int = 0) -> bytes:
    """A LevelDB table; nothing is really compressed, whatever `compression` says."""
    items = list(entries.items())
    content, handles = b"", []
    for start in range(0, len(items), entries_per_block):
        part = items[start : start + entries_per_block]
        data = block(part)
        handles.append((part[-1][0], varint(len(content)) + varint(len(data))))
        content += with_trailer(data, compression)
    pointers = b""
    for data in (block([]), block(handles)):
        pointers += varint(len(content)) + varint(len(data))
        content += with_trailer(data)
    return content + pointers.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def header(num_shards: int = 1, endianness: int = 0, min_consumer: int = 0) -> bytes:
    return field(1, num_shards) + field(2, endianness) + field(3, field(1, 1) + field(2, min_consumer))


def entry(
    shape: tuple[int, ...],
    *,
    dtype: int = 1,
    shard_id: int = 0,
    offset: int = 0,
    size: int | None = None,
    crc32c: int = 0,
    slices: tuple[tuple[tuple[int, int], ...], ...] = (),
) -> bytes:
    """An entry of the index; `slices` are (start, length) of each dimension, of each slice."""
    size = 4 * math.prod(shape) if size is None else size
    dimensions = b"".join(field(2, field(1, dim)) for dim in shape)
    numbers = field(1, dtype) + field(2, dimensions) + field(3, shard_id) + field(4, offset) + field(5, size)
    checksum = varint(6 << 3 | 5) + crc32c.to_bytes(4, "little")
    extents = [b"".join(field(1, field(1, start) + field(2, length)) for start, length in one) for one in slices]
    return numbers + checksum + b"".join(field(7, one) for one in extents)


def slice_key(name: bytes, *extents: tuple[int, int]) -> bytes:
    """The key of a slice with numbers below 64."""
    numbers = bytes(0x80 + number for extent in extents for number in extent)
    return b"\0" + name + b"\0\1" + bytes([1, len(extents)]) + numbers


def write_bundle(prefix: Path, tensors: Mapping[str, np.ndarray], num_shards: int = 1, **table_kind: int) -> Path:
    """Write a whole checkpoint; the tensors go to the data files in turn."""
    data = [b""] * num_shards
    entries = {b"": header(num_shards)}
    for i, name in enumerate(sorted(tensors, key=str.encode)):
        array, shard_id = tensors[name], i % num_shards
        content = array.tobytes()
        entries[name.encode()] = entry(
            array.shape,
            dtype=DTYPE_NUMBERS[array.dtype.name],
            shard_id=shard_id,
            offset=len(data[shard_id]),
            size=len(content),
            crc32c=masked_crc32c(content),
        )
        data[shard_id] += content
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries, **table_kind))
    for i, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{num_shards:05d}").write_bytes(content)
    return prefix


def gpt2_tensors(hidden_size: int, num_layers: int, vocab_size: int, context_length: int) -> dict[str, np.ndarray]:
    """Random float32 values under the names and shapes of OpenAI's src/model.py."""
    shapes = gpt2_shapes(hidden_size, num_layers, vocab_size, context_length)
    generator = np.random.default_rng(hidden_size)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gpt2_shapes(hidden_size: int, num_layers: int, vocab_size: int, context_length: int) -> dict[str, tuple[int, ...]]:
    """The variables of OpenAI's src/model.py."""
    c = hidden_size
    shapes = {"model/wte": (vocab_size, c), "model/wpe": (context_length, c)}
    shapes |= {"model/ln_f/g": (c,), "model/ln_f/b": (c,)}
    for i in range(num_layers):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"model/h{i}/{norm}/g": (c,), f"model/h{i}/{norm}/b": (c,)}
        for name, n_in, n_out in (
            ("attn/c_attn", c, 3 * c),
            ("attn/c_proj", c, c),
            ("mlp/c_fc", c, 4 * c),
            ("mlp/c_proj", 4 * c, c),
        ):
            shapes |= {f"model/h{i}/{name}/w": (1, n_in, n_out), f"model/h{i}/{name}/b": (n_out,)}
    return shapes
