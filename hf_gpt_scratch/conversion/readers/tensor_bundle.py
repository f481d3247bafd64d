"""TensorFlow checkpoints ("V2 tensor bundles") without TensorFlow: memory-mapped, every checksum verified.

`model.ckpt.index` is a table from variable name to where its bytes lie; `model.ckpt.data-00000-of-00001`, or several
such files, hold the bare bytes. The slices of a partitioned variable have entries of their own. Sources, in
tensorflow/core: util/tensor_bundle/tensor_bundle.h, util/saved_tensor_slice_util.cc, lib/strings/ordered_code.cc,
protobuf/tensor_bundle.proto, framework/{tensor_shape,tensor_slice,types}.proto;
https://protobuf.dev/programming-guides/encoding/.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import google_crc32c
import numpy as np

from hf_gpt_scratch.conversion.readers.leveldb_table import Cursor, mask, parse_table
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors


READ_BYTES = 256 << 10
BUNDLE_VERSION = 1

# The TensorFlow dtypes that numpy has too, by the numbers of types.proto, and the names of some that it has not.
NUMPY_DTYPES: dict[int, np.dtype] = {
    number: np.dtype(code)
    for number, code in {
        1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 8: "<c8", 9: "<i8", 10: "?", 17: "<u2", 18: "<c16",
        19: "<f2", 22: "<u4", 23: "<u8",
    }.items()
}  # fmt: skip
OTHER_DTYPES = {7: "string", 14: "bfloat16", 20: "resource", 21: "variant"}

Place = tuple[slice, ...]  # of a slice in its variable


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or of a kind that is not read here; the message is one line."""


@contextmanager
def checkpoint_errors(path: Path, place: str = "") -> Iterator[None]:
    """Say in one line that a file cannot be read, also of a kind that only TensorFlow reads, or is damaged."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except NotImplementedError as error:
        raise CheckpointError(f"{path} is not read without TensorFlow ({error}): use the reader that has it") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or corrupt{place} ({error}): get it again") from None


def message_values(message: int | bytes) -> dict[int, list[int | bytes]]:
    """Collect the values of each field of a protobuf message: int for numbers, bytes for what has a length."""
    if isinstance(message, int):
        raise ValueError("there is a number where a message should be")
    cursor, values = Cursor(message), defaultdict[int, list[int | bytes]](list)
    while cursor:
        number, wire_type = divmod(cursor.varint(), 8)
        if wire_type == 0:
            values[number].append(cursor.varint())
        elif wire_type == 2:
            values[number].append(cursor.take(cursor.varint()))
        elif wire_type in (1, 5):
            values[number].append(int.from_bytes(cursor.take(8 if wire_type == 1 else 4), "little"))
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire_type}")
    return values


def number_in(values: Mapping[int, list[int | bytes]], field: int) -> int:
    """Return the value of a numeric field, 0 where it is not written."""
    value = values.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError("there is a message where a number should be")
    return value


@dataclass(frozen=True)
class BundleEntry:
    """BundleEntryProto: what a tensor is and where it lies, `offset` and `size` in bytes.

    A partitioned variable has no bytes of its own: they are those of its `slices`.
    """

    dtype: int
    shape: tuple[int, ...]
    shard_id: int
    offset: int
    size: int
    crc32c: int  # masked
    slices: tuple[tuple[Place, "BundleEntry"], ...] = ()


def ordered_number(number: int) -> bytes:
    """Encode a number of a slice's key: as many one bits at the front as there are bytes, which sorts by value."""
    count = number.bit_length() // 7 + 1
    return (((1 << count) - 1 << 7 * count) | number).to_bytes(count, "big")


def find_slice(name: str, shape: tuple[int, ...], message: int | bytes) -> tuple[bytes, Place]:
    """Return the key and the place of a slice from its TensorSliceProto."""
    extents = [message_values(extent) for extent in message_values(message).get(1, [])]
    if len(extents) != len(shape):
        raise ValueError(f"{name} has the shape {list(shape)} and a slice of {len(extents)} dimensions")
    key, place = b"\0" + name.encode() + b"\0\1\1" + bytes([len(shape)]), []
    for extent, size in zip(extents, shape, strict=True):
        start, length = number_in(extent, 1), number_in(extent, 2) if 2 in extent else size
        key += ordered_number(start) + (ordered_number(length) if 2 in extent else b"\x7f")  # -1: the whole dimension
        place.append(slice(start, start + length))
    return key, tuple(place)


def parse_entry(name: str, key: bytes, table: Mapping[bytes, bytes], num_shards: int) -> BundleEntry:
    """Read an entry of the index, with those of its slices; ValueError says that they contradict each other."""
    values = message_values(table[key])
    dims = [dim for shape in values.get(2, []) for dim in message_values(shape).get(2, [])]
    shape = tuple(number_in(message_values(dim), 1) for dim in dims)
    number, shard_id, offset, size, crc32c = (number_in(values, field) for field in (1, 3, 4, 5, 6))
    if shard_id >= num_shards:
        raise ValueError(f"{name} lies in data file {shard_id} of {num_shards}")
    dtype = NUMPY_DTYPES.get(number)
    fits = dtype is None or 7 in values or math.prod(shape) * dtype.itemsize == size
    if not fits or any(dim >= 2**31 for dim in shape):
        raise ValueError(f"{name} has {size} bytes and the shape {list(shape)}")
    slices = []
    for message in values.get(7, []):
        part_key, place = find_slice(name, shape, message)
        if part_key not in table:
            raise ValueError(f"a slice of {name} is missing")
        part = parse_entry(f"a slice of {name}", part_key, table, num_shards)
        if (part.dtype, part.shape) != (number, tuple(one.stop - one.start for one in place)):
            raise ValueError(f"a slice of {name} has another dtype or shape than the index says")
        slices.append((place, part))
    if slices and not fill_exactly([place for place, _ in slices], shape):
        raise ValueError(f"the slices of {name} do not fill its shape {list(shape)}")
    return BundleEntry(number, shape, shard_id, offset, size, crc32c, tuple(slices))


def fill_exactly(places: list[Place], shape: tuple[int, ...]) -> bool:
    """Return True if slices lie in a shape, leave nothing of it, and share nothing."""
    inside = all(one.stop <= size for place in places for one, size in zip(place, shape, strict=True))
    shared = any(
        all(one.start < other.stop and other.start < one.stop for one, other in zip(*pair, strict=True))
        for pair in combinations(places, 2)
    )
    sizes = (math.prod(one.stop - one.start for one in place) for place in places)
    return inside and not shared and sum(sizes) == math.prod(shape)


def read_index(path: Path) -> tuple[int, dict[str, BundleEntry]]:
    """Read and check an .index file: the number of data files, and the entries by variable name.

    Raises:
        CheckpointError: it is damaged or of a kind that is not read here.
    """
    with checkpoint_errors(path):
        table = parse_table(path.read_bytes())
        if b"" not in table:
            raise ValueError("it has no header")
        header = message_values(table.pop(b""))
        num_shards, is_big_endian = number_in(header, 1), number_in(header, 2)
        min_consumer = max(number_in(message_values(version), 2) for version in header.get(3, [b""]))
        if is_big_endian or min_consumer > BUNDLE_VERSION:
            raise NotImplementedError("it is big-endian or of a later version of the format")
        names = [key.decode("utf-8") for key in table if not key.startswith(b"\0")]  # those are of slices
        return num_shards, {name: parse_entry(name, name.encode(), table, num_shards) for name in names}


class TensorBundle(NamedTensors):
    """The tensors of a checkpoint by name, in the order of the index, read-only and memory-mapped.

    A partitioned variable is joined in memory. A tensor's checksum is verified every time it is asked for;
    `CheckpointError` says that it is damaged, or that its name is among the skipped: of what numpy cannot hold, such
    as TensorFlow's object graph, with the reason.
    """

    def __init__(self, data_files: dict[int, Path], entries: dict[str, BundleEntry]) -> None:
        self._data_files = data_files
        self._entries = entries
        self.dtypes = {name: NUMPY_DTYPES[e.dtype] for name, e in entries.items() if e.dtype in NUMPY_DTYPES}
        self.shapes = {name: entries[name].shape for name in self.dtypes}
        self.skipped = {name: skip_reason(e.dtype) for name, e in entries.items() if e.dtype not in NUMPY_DTYPES}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.skipped:
            raise CheckpointError(f"{name} cannot be read: {self.skipped[name]}")
        entry = self._entries[name]
        if not entry.slices:
            return self._map(entry, name)
        joined = np.empty(entry.shape, NUMPY_DTYPES[entry.dtype])
        for number, (place, part) in enumerate(entry.slices, 1):
            joined[place] = self._map(part, f"{name}, slice {number} of {len(entry.slices)}")
        joined.flags.writeable = False
        return joined

    def _map(self, entry: BundleEntry, title: str) -> np.ndarray:
        path = self._data_files[entry.shard_id]
        with checkpoint_errors(path, f" at {title}"):
            verify_checksum(path, entry)
            if not entry.size:
                return np.zeros(entry.shape, NUMPY_DTYPES[entry.dtype])
            return np.memmap(path, NUMPY_DTYPES[entry.dtype], "r", entry.offset, entry.shape)


def skip_reason(dtype: int) -> str:
    """Say why a tensor of this dtype, a number of types.proto, is skipped."""
    return f"numpy has no dtype {OTHER_DTYPES.get(dtype, f'number {dtype} of TensorFlow')}"


def verify_checksum(path: Path, entry: BundleEntry) -> None:
    """Read a tensor part by part, which unlike a map survives a file that is truncated meanwhile."""
    crc, left = 0, entry.size
    with path.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        while left:
            part = file.read(min(READ_BYTES, left))
            if not part:
                raise ValueError(f"{left} bytes are missing")
            crc, left = google_crc32c.extend(crc, part), left - len(part)
    if mask(crc) != entry.crc32c:
        raise ValueError(f"its checksum is {mask(crc):08x}, the index says {entry.crc32c:08x}")


def find_checkpoint_prefix(path: str | Path) -> Path:
    """Return the part that the names of a checkpoint's files have in common, such as `124M/model.ckpt`.

    Args:
        path: a folder, the prefix itself, one of the files that begin with it, or the `checkpoint` file that names it.

    Raises:
        CheckpointError, FileNotFoundError: there is no checkpoint, or several and no file that names one.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / "checkpoint"] if (path / "checkpoint").is_file() else sorted(path.glob("*.index"))
        if not found:
            raise FileNotFoundError(f"{path} holds no TensorFlow checkpoint: give the folder with model.ckpt.index")
        if len(found) > 1:
            raise CheckpointError(f"{path} holds {len(found)} checkpoints: give one of them, such as {found[0]}")
        path = found[0]
    if path.name == "checkpoint" and path.is_file():
        return read_checkpoint_file(path)
    prefix = path.with_name(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name))
    if not Path(f"{prefix}.index").is_file():
        raise FileNotFoundError(
            f"there is no {prefix}.index: give the folder of a TensorFlow checkpoint, or its prefix"
        )
    return prefix


def read_checkpoint_file(path: Path) -> Path:
    """Return the prefix that a `checkpoint` file names; an absolute one is first looked for beside it."""
    with checkpoint_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r'^model_checkpoint_path: *"([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise CheckpointError(f"{path} names no checkpoint: give the .index file instead")
    stated, beside = path.parent / found[1], path.with_name(re.split(r"[/\\]", found[1])[-1])
    for prefix in (beside, stated) if os.path.isabs(found[1]) else (stated, beside):
        if Path(f"{prefix}.index").is_file():
            return prefix
    raise CheckpointError(f"{path} names {found[1]!r}, which is not there: give the .index file instead")


def open_tensor_bundle(path: str | Path, ending: str = "") -> TensorBundle:
    """Open the checkpoint that `find_checkpoint_prefix` finds; what it holds is verified when it is asked for.

    `ending` is added to the names of the data files, such as ".part" while they are not complete.

    Raises:
        CheckpointError: it is damaged, incomplete or of a kind that is not read here.
        FileNotFoundError: there is no checkpoint.
    """
    prefix = find_checkpoint_prefix(path)
    num_shards, entries = read_index(Path(f"{prefix}.index"))
    ends = defaultdict[int, int](int)  # of the last tensor in each data file
    for entry in entries.values():
        for part in [part for _, part in entry.slices] or [entry]:
            ends[part.shard_id] = max(ends[part.shard_id], part.offset + part.size)
    data_files = {i: Path(f"{prefix}.data-{i:05d}-of-{num_shards:05d}{ending}") for i in sorted(ends)}
    for shard_id, path in data_files.items():
        with checkpoint_errors(path):
            size = path.stat().st_size
        if size != ends[shard_id]:
            raise CheckpointError(f"{path} has {size} bytes, its index says {ends[shard_id]}: get both again")
    return TensorBundle(data_files, entries)
