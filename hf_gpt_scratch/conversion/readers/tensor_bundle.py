"""TensorFlow checkpoints ("V2 tensor bundles") without TensorFlow: memory-mapped, every checksum verified.

`model.ckpt.index` is a table from variable name to where its bytes lie; `model.ckpt.data-00000-of-00001`, or several
such files, hold the bare bytes. Sources, in tensorflow/core: util/tensor_bundle/tensor_bundle.h,
protobuf/tensor_bundle.proto, framework/{tensor_shape,types}.proto; https://protobuf.dev/programming-guides/encoding/.
"""

import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

import google_crc32c
import numpy as np

from hf_gpt_scratch.conversion.readers.leveldb_table import Cursor, mask, parse_table
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors
from hf_gpt_scratch.conversion.readers.tf_paths import CheckpointError, find_checkpoint_prefix


READ_BYTES = 256 << 10
HELD_BYTES = 16 << 20  # larger tensors are not read into memory but mapped
BUNDLE_VERSION = 1

# By the numbers of types.proto: the TensorFlow dtypes that numpy has too, and the names of some that it has not.
NUMPY_DTYPES = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    8: np.dtype("<c8"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    17: np.dtype("<u2"),
    18: np.dtype("<c16"),
    19: np.dtype("<f2"),
    22: np.dtype("<u4"),
    23: np.dtype("<u8"),
}
OTHER_DTYPES = {7: "string", 14: "bfloat16", 20: "resource", 21: "variant"}


def message_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Split a protobuf message into (field number, value): int for numbers, bytes for what has a length."""
    cursor = Cursor(message)
    while cursor:
        number, wire_type = divmod(cursor.varint(), 8)
        if wire_type == 0:
            yield number, cursor.varint()
        elif wire_type == 2:
            yield number, cursor.take(cursor.varint())
        elif wire_type in (1, 5):
            yield number, int.from_bytes(cursor.take(8 if wire_type == 1 else 4), "little")
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire_type}")


@dataclass
class BundleHeader:
    """BundleHeaderProto."""

    num_shards: int = 0
    big_endian: bool = False
    min_consumer: int = 0  # oldest version of the format that a reader must know

    @classmethod
    def parse(cls, message: bytes) -> "BundleHeader":
        """Read it from its wire format."""
        header = cls()
        for field in message_fields(message):
            match field:
                case 1, int(num_shards):
                    header.num_shards = num_shards
                case 2, int(endianness):
                    header.big_endian = endianness != 0
                case 3, bytes(version):
                    header.min_consumer = number_in(version, 2)
        return header


@dataclass
class BundleEntry:
    """BundleEntryProto: what a tensor is and where it lies, `offset` and `size` in bytes."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard_id: int = 0
    offset: int = 0
    size: int = 0
    crc32c: int = 0  # masked
    num_slices: int = 0

    @classmethod
    def parse(cls, message: bytes) -> "BundleEntry":
        """Read it from its wire format."""
        entry = cls()
        numbers = {1: "dtype", 3: "shard_id", 4: "offset", 5: "size", 6: "crc32c"}
        for field in message_fields(message):
            match field:
                case 2, bytes(shape):
                    entry.shape = tuple(number_in(dim, 1) for n, dim in message_fields(shape) if n == 2)
                case 7, bytes():
                    entry.num_slices += 1
                case number, int(value) if number in numbers:
                    setattr(entry, numbers[number], value)
        return entry


def number_in(message: int | bytes, field: int) -> int:
    """The value of a numeric field; 0, which is not written, if it is not there."""
    if isinstance(message, int):
        raise ValueError("there is a number where a message should be")
    return next((value for number, value in message_fields(message) if number == field and isinstance(value, int)), 0)


def check_entry(name: str, entry: BundleEntry, header: BundleHeader) -> None:
    """Hold an entry against itself and the header.

    Raises:
        NotImplementedError: it is of a kind that is not read here.
        ValueError: it contradicts itself.
    """
    if entry.num_slices:
        raise NotImplementedError(f"{name} is a partitioned variable, in {entry.num_slices} slices")
    if entry.shard_id >= header.num_shards:
        raise ValueError(f"{name} lies in data file {entry.shard_id} of {header.num_shards}")
    dtype = NUMPY_DTYPES.get(entry.dtype)
    fits = dtype is None or math.prod(entry.shape) * dtype.itemsize == entry.size
    if not fits or any(dim >= 2**31 for dim in entry.shape):
        raise ValueError(f"{name} has {entry.size} bytes and the shape {list(entry.shape)}")


def read_index(path: Path) -> tuple[BundleHeader, dict[str, BundleEntry]]:
    """Read and check an .index file: its header, and the entries by variable name.

    Raises:
        CheckpointError: it is damaged or of a kind that is not read here.
    """
    try:
        table = parse_table(path.read_bytes())
        if b"" not in table:
            raise ValueError("it has no header")
        header = BundleHeader.parse(table.pop(b""))
        if header.big_endian or header.min_consumer > BUNDLE_VERSION:
            raise NotImplementedError("it is big-endian or of a later version of the format")
        # Keys that begin with a zero byte are the slices of a partitioned variable, whose own entry counts them.
        entries = {k.decode("utf-8"): BundleEntry.parse(v) for k, v in table.items() if not k.startswith(b"\0")}
        for name, entry in entries.items():
            check_entry(name, entry, header)
    except NotImplementedError as error:
        raise CheckpointError(f"{path} is not read without TensorFlow ({error}): use the reader that has it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): get it again") from None
    return header, entries


class TensorBundle(NamedTensors):
    """The tensors of a checkpoint by name, in the order of the index; each is read when it is asked for.

    A tensor is a read-only array whose memory is the file. Its checksum is verified every time it is asked for;
    `CheckpointError` says that it is damaged, or that its name is among the skipped.

    Attributes:
        shapes: of each tensor.
        dtypes: of each tensor.
        skipped: names of what numpy cannot hold, such as TensorFlow's object graph, with the reason.
    """

    def __init__(self, data_files: dict[int, Path], entries: dict[str, BundleEntry]) -> None:
        self._data_files = data_files
        self._entries = {name: entry for name, entry in entries.items() if entry.dtype in NUMPY_DTYPES}
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: NUMPY_DTYPES[entry.dtype] for name, entry in self._entries.items()}
        self.skipped = {name: skip_reason(e.dtype) for name, e in entries.items() if e.dtype not in NUMPY_DTYPES}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # what Mapping does would read the tensor

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.skipped:
            raise CheckpointError(f"{name} cannot be read: {self.skipped[name]}")
        entry = self._entries[name]
        with self._open(name) as file:
            if entry.size < HELD_BYTES:
                return read_tensor(file, entry)
            verify_checksum(file, entry)
            return map_tensor(file, entry)

    def read_into(self, name: str, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Read from the file, and not through a map, into memory of the caller; see `NamedTensors`."""
        with self._open(name) as file:
            yield from read_verified(file, self._entries[name], pieces)

    @contextmanager
    def _open(self, name: str) -> Iterator[RawIOBase]:
        """Open the data file of a tensor; what goes wrong inside is told in one line."""
        path = self._data_files[self._entries[name].shard_id]
        try:
            with path.open("rb", buffering=0) as file:
                yield file
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged at {name} ({error}): get it again") from None


def skip_reason(dtype: int) -> str:
    """Why a tensor of this dtype, a number of types.proto, is skipped."""
    return f"numpy has no dtype {OTHER_DTYPES.get(dtype, f'number {dtype} of TensorFlow')}"


def read_tensor(file: RawIOBase, entry: BundleEntry) -> np.ndarray:
    """A tensor's bytes, read once and verified.

    Raises:
        ValueError: the bytes are not those that were written.
    """
    values = np.empty(entry.size, np.uint8)
    deque(read_verified(file, entry, [values]), maxlen=0)
    values.flags.writeable = False
    return values.view(NUMPY_DTYPES[entry.dtype]).reshape(entry.shape)


def verify_checksum(file: RawIOBase, entry: BundleEntry) -> None:
    """Read a tensor without keeping it: that survives a file that is cut meanwhile, and a map would not.

    Raises:
        ValueError: the bytes are not those that were written.
    """
    buffer = np.empty(READ_BYTES, np.uint8)
    pieces = (buffer[: entry.size - start] for start in range(0, entry.size, READ_BYTES))
    deque(read_verified(file, entry, pieces), maxlen=0)


def read_verified(file: RawIOBase, entry: BundleEntry, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Read a tensor into `pieces`, one after the other; the checksum is taken while the bytes are in the cache.

    Raises:
        ValueError: the bytes are not those that were written; before the last piece is handed out.
    """
    file.seek(entry.offset)
    crc, missing = 0, entry.size
    for piece in pieces:
        piece_bytes = piece.reshape(-1).view(np.uint8)
        for start in range(0, len(piece_bytes), READ_BYTES):
            part = piece_bytes[start : start + READ_BYTES]
            count = file.readinto(part)
            missing -= count
            if count < len(part):
                raise ValueError(f"{missing} bytes are missing")
            crc = google_crc32c.extend(crc, part)
        if missing == 0:
            compare_checksum(crc, entry)
        yield piece
    compare_checksum(crc, entry)  # for a tensor without bytes, which has no last piece, or with pieces too few


def compare_checksum(crc: int, entry: BundleEntry) -> None:
    """Raise ValueError if this is not the checksum of the index."""
    if mask(crc) != entry.crc32c:
        raise ValueError(f"its checksum is {mask(crc):08x}, the index says {entry.crc32c:08x}")


def map_tensor(file: RawIOBase, entry: BundleEntry) -> np.ndarray:
    """A tensor's bytes in the file as an array; the map lives as long as the array, the file may be closed."""
    dtype = NUMPY_DTYPES[entry.dtype]
    if entry.size == 0:
        return np.frombuffer(b"", dtype).reshape(entry.shape)
    before = entry.offset % mmap.ALLOCATIONGRANULARITY
    pages = mmap.mmap(file.fileno(), before + entry.size, access=mmap.ACCESS_READ, offset=entry.offset - before)
    return np.frombuffer(pages, dtype, offset=before).reshape(entry.shape)


def check_data_files(data_files: dict[int, Path], entries: dict[str, BundleEntry]) -> None:
    """See that every data file is there and ends with its last tensor.

    Raises:
        CheckpointError: one is missing, cut or too long.
    """
    ends = dict.fromkeys(data_files, 0)
    for entry in entries.values():
        ends[entry.shard_id] = max(ends[entry.shard_id], entry.offset + entry.size)
    for shard_id, path in data_files.items():
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        if size != ends[shard_id]:
            raise CheckpointError(f"{path} has {size} bytes, its index says {ends[shard_id]}: get both again")


def open_tensor_bundle(path: str | Path, ending: str = "") -> TensorBundle:
    """Open a checkpoint; what it holds is verified when it is asked for.

    Args:
        path: what `find_checkpoint_prefix` takes.
        ending: what is added to the names of the data files, such as ".part" while they are not complete.

    Raises:
        CheckpointError: it is damaged, incomplete or of a kind that is not read here.
        FileNotFoundError: there is no checkpoint.
    """
    prefix = find_checkpoint_prefix(path)
    header, entries = read_index(Path(f"{prefix}.index"))
    shard_ids = sorted({entry.shard_id for entry in entries.values()})
    data_files = {i: Path(f"{prefix}.data-{i:05d}-of-{header.num_shards:05d}{ending}") for i in shard_ids}
    check_data_files(data_files, entries)
    return TensorBundle(data_files, entries)
