"""Read which Xet hash belongs to which sha256, from the shards that Xet's own code left in a folder.

A shard (`.mdb`) is a header of 48 bytes, then one group of 48-byte records for each file, up to a record of ones.
"""

import struct
from collections.abc import Iterator
from pathlib import Path


RECORD = 48  # bytes
END = b"\xff" * 32
HAS_VERIFICATION = 1 << 31
HAS_SHA256 = 1 << 30


def hex_of(record: bytes) -> str:
    """A hash is four little-endian numbers of 64 bits, written one after the other."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", record[:32]))


def files_in_shard(content: bytes) -> Iterator[tuple[str, str]]:
    """Pairs of sha256 and Xet hash."""
    position = RECORD
    while content[position : position + 32] != END:
        flags, segments = struct.unpack_from("<2I", content, position + 32)
        xet_hash = hex_of(content[position : position + RECORD])
        position += RECORD * (1 + segments * (2 if flags & HAS_VERIFICATION else 1))
        if flags & HAS_SHA256:
            yield hex_of(content[position : position + RECORD]), xet_hash
            position += RECORD


def xet_hashes(folder: Path) -> dict[str, str]:
    """All files that the storage in a folder of Xet's holds, by sha256; what is still on its way does not count."""
    found: dict[str, str] = {}
    for shard in (folder / "xet" / "xorbs" / "shards").glob("*.mdb"):
        found.update(files_in_shard(shard.read_bytes()))
    return found
