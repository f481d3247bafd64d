"""The table format of LevelDB, in which TensorFlow keeps the index of a checkpoint: sorted keys, checksummed blocks.

A footer points to the index block, which points to the data blocks. Source:
https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from collections.abc import Iterator

import google_crc32c


MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER_BYTES = 48  # where the two index blocks lie, padding, magic
TRAILER_BYTES = 5  # behind each block: one byte for the compression, four for the checksum


class Cursor:
    """Reads bytes and numbers from a message in order, never past its end."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.position = 0

    def __bool__(self) -> bool:
        """Return True if anything is left."""
        return self.position < len(self.message)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.message):
            raise ValueError("a field reaches past its end")
        return self.message[start : self.position]

    def varint(self) -> int:
        """Return the next number, 0 to 2**64 - 1, written in bytes of seven bits, the low ones first."""
        number = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number % 2**64
        raise ValueError("a number has more than 64 bits")


def mask(crc: int) -> int:
    """Return a CRC32C as it is stored, since CRCs of data that holds CRCs are weak (util/crc32c.h)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def read_block(table: bytes, offset: int, size: int) -> bytes:
    """Return the content of a block, verified."""
    end = offset + size
    if end + TRAILER_BYTES + FOOTER_BYTES > len(table):
        raise ValueError(f"the block at byte {offset} reaches past its end")
    if mask(google_crc32c.value(table[offset : end + 1])) != int.from_bytes(table[end + 1 : end + 5], "little"):
        raise ValueError(f"the block at byte {offset} has another checksum")
    if table[end] != 0:
        raise NotImplementedError("it is compressed")
    return table[offset:end]


def block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block; what a key shares with the key before it is not written again."""
    num_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (num_restarts + 1)
    if end < 0:
        raise ValueError("a block is too short")
    cursor, key = Cursor(block[:end]), b""
    while cursor:
        shared, unshared, value_size = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key):
            raise ValueError("a key shares more with the key before than that one has")
        key = key[:shared] + cursor.take(unshared)
        yield key, cursor.take(value_size)


def parse_table(table: bytes) -> dict[bytes, bytes]:
    """Return all keys and values of a table, in its order.

    ValueError: it is damaged, or not such a table; NotImplementedError: it is compressed.
    """
    if len(table) < FOOTER_BYTES or not table.endswith(MAGIC):
        raise ValueError(f"its {len(table)} bytes do not end like a table")
    footer = Cursor(table[-FOOTER_BYTES : -len(MAGIC)])
    _metaindex, index = [(footer.varint(), footer.varint()) for _ in range(2)]
    entries: dict[bytes, bytes] = {}
    for _last_key, value in block_entries(read_block(table, *index)):
        handle = Cursor(value)
        entries.update(block_entries(read_block(table, handle.varint(), handle.varint())))
    return entries
