"""Files that were packed by gzip or Zstandard, unpacked while they are read."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO


PACKED = (".gz", ".zst")  # endings that stand after the one that names the kind
BLOCK_BYTES = 1 << 16  # of the packed file, read at a time


def is_packed(path: Path) -> bool:
    """Return True if the name says that a file is packed."""
    return path.suffix.lower() in PACKED


@contextmanager
def open_unpacked(path: Path) -> Iterator[tuple[BinaryIO | io.BufferedIOBase, BinaryIO]]:
    """Open a file, packed or not.

    Returns:
        Its content, and the file as it lies on the disk, whose `tell()` says how much of it has been read.

    Raises:
        ValueError: it is not whole, or zstandard is not installed; the line names the file.
    """
    with path.open("rb") as file:
        try:
            yield (open_packed(file, path) if is_packed(path) else file), file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is truncated or corrupt ({reason}): fetch it again") from None


def open_packed(file: BinaryIO, path: Path) -> io.BufferedIOBase:
    """Open the content of a packed file."""
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(fileobj=file)
    try:
        import zstandard
    except ImportError:
        raise ValueError(f"{path} needs zstandard: pip install zstandard") from None
    return io.BufferedReader(JoinedBlocks(unpacked_frames(file, zstandard)))


def unpacked_frames(file: BinaryIO, zstandard: ModuleType) -> Iterator[bytes]:
    """Unpack the frames of a .zst file; EOFError says that it is cut off, which its own reader would not notice."""
    packed, frame = b"", None
    while packed := packed or file.read(BLOCK_BYTES):
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            content = frame.decompress(packed)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        packed = frame.unused_data
        frame = None if frame.eof else frame
        if content:
            yield content
    if frame is not None:
        raise EOFError("it was cut off")


class JoinedBlocks(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, as far as the block at hand goes."""
        if not self.rest:
            self.rest = memoryview(next(self.blocks, b""))
        count = min(len(buffer), len(self.rest))
        buffer[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count
