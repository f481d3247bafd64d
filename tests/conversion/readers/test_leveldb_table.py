"""Proves that tables are read as LevelDB's format says and that nothing in a damaged or malicious one is believed.

The tables come from an encoder of the tests (bundle_writer.py), which TensorFlow's reader accepts
(test_tensor_bundle.py).
"""

import random

import pytest

from hf_gpt_scratch.conversion.readers.leveldb_table import Cursor, mask, parse_table
from tests.conversion.bundle_writer import block, table, varint, with_trailer


ENTRIES = {f"model/h{i:02d}/attn/{part}".encode(): bytes([i]) * i for i in range(23) for part in ("b", "w")}


def one_block(content: bytes) -> bytes:
    """A table whose only data block is `content`."""
    data = with_trailer(content)
    index = block([(b"z", varint(0) + varint(len(content)))])
    pointers = varint(0) + varint(0) + varint(len(data)) + varint(len(index))
    return data + with_trailer(index) + pointers.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


@pytest.mark.parametrize("entries_per_block", [1, 3, 5, 100])
def test_all_entries_in_order(entries_per_block):
    assert list(parse_table(table(ENTRIES, entries_per_block)).items()) == list(ENTRIES.items())


def test_an_empty_table():
    assert parse_table(table({})) == {}


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31, 2**63, 2**64 - 1])
def test_varint(number):
    assert Cursor(varint(number) + b"rest").varint() == number


def test_mask_by_the_example_of_leveldb():
    # crc32c("123456789") is the check value of RFC 3720; masking is not its own inverse and does not keep it.
    assert mask(0xE3069283) == ((0xE3069283 >> 15) + ((0xE3069283 & 0x7FFF) << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert mask(mask(0xE3069283)) not in (0xE3069283, mask(0xE3069283))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes do not end like a table"),
        (b"<!DOCTYPE html><title>404</title>" * 9, "do not end like a table"),
        (table(ENTRIES)[:-1], "do not end like a table"),
        (table(ENTRIES)[-48:], "reaches past its end"),
        (b"\0" * 40 + bytes.fromhex("57fb808b247547db"), "reaches past its end"),
        (b"\xff" * 40 + bytes.fromhex("57fb808b247547db"), "more than 64 bits"),
        (one_block(b"\0\0\0"), "too short"),
        (one_block(b"\xff\xff\xff\xff"), "too short"),
        (one_block(varint(3) + varint(1) + varint(0) + b"k" + bytes(4)), "shares more"),
        (one_block(varint(0) + varint(2**60) + varint(0) + b"k" + bytes(4)), "reaches past its end"),
        (one_block(b"\xff" * 11 + bytes(4)), "more than 64 bits"),
        (one_block(b"\0" + bytes(4)), "reaches past its end"),
    ],
)
def test_what_is_no_table_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        parse_table(content)


def test_compression_is_refused_as_such():
    with pytest.raises(NotImplementedError, match="compressed"):
        parse_table(table(ENTRIES, compression=1))


def test_every_changed_byte_is_refused_or_does_not_matter():
    """Every byte, not a sample: what stays unseen lies in the footer's padding and in the unused metaindex."""
    good = table(ENTRIES)
    harmless = 0
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << position % 8
        try:
            assert parse_table(bytes(changed)) == ENTRIES
            harmless += 1
        except (ValueError, NotImplementedError):
            pass
    assert 0 < harmless < 60


def test_random_bytes_with_good_checksums_raise_nothing_else():
    """What a flipped bit cannot do, a malicious file can: blocks of nonsense under the right checksum."""
    generator = random.Random(1)
    refused = 0
    for _ in range(2000):
        content = generator.randbytes(generator.randrange(40)) + bytes(4)
        try:
            parse_table(one_block(content))
        except ValueError:
            refused += 1
    assert refused > 1500
