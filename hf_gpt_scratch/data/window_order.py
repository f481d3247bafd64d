"""A shuffled order of any length that needs no memory: where each index goes is computed when it is asked for."""

import hashlib

import numpy as np


NUM_ROUNDS = 8


class KeyedOrder:
    """A permutation of `range(size)`, the same for the same seed, of which slices are taken: `order[100:200]`.

    A Feistel network is a bijection of 2h bits whatever its round function (Luby and Rackoff, 1988: four rounds of a
    random function cannot be told from a random permutation). An image outside `range(size)` is mapped again until it
    lies inside (cycle walking; Black and Rogaway, 2002), fewer than four times on average.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.half_bits = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
        self.half_mask = np.uint64((1 << int(self.half_bits)) - 1)
        digests = [hashlib.sha256(f"{seed}:{number}".encode()).digest() for number in range(NUM_ROUNDS)]
        self.round_keys = [np.uint64(int.from_bytes(digest[:8], "big")) for digest in digests]

    def __getitem__(self, places: slice) -> np.ndarray:
        """Return the indices at some places of the order, int64."""
        images = self._encrypt(np.arange(*places.indices(self.size), dtype=np.uint64))
        while (outside := images >= self.size).any():
            images[outside] = self._encrypt(images[outside])
        return images.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self.half_bits, values & self.half_mask
        for key in self.round_keys:
            left, right = right, left ^ (mix(right ^ key) & self.half_mask)
        return (left << self.half_bits) | right


def mix(values: np.ndarray) -> np.ndarray:
    """Spread every bit over all 64: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
