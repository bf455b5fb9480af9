"""The order of samples: a formula of (seed, epoch), so that there is no order to store.

Sample i of an epoch is a keyed permutation of the window numbers: a Feistel network over the next
power of four, and whatever falls outside the range goes through it again ("cycle walking",
Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

import hashlib

import numpy as np

ROUNDS = 8
"""Round keys from one 64-byte hash; below six, permutations of a few dozen items look regular."""


def round_keys(seed: int, epoch: int) -> np.ndarray:
    """Return ROUNDS 64-bit keys (uint64) that depend on seed and epoch alone."""
    digest = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def epoch_phase(size: int, *, seed: int, epoch: int) -> int:
    """Return the epoch's offset in [0, size), the place where its first window begins."""
    digest = hashlib.blake2b(f"phase/{seed}/{epoch}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little") % size


def permute(index: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Map each index to its place in the epoch's permutation of range(size).

    Args:
        index: integers in [0, size), any shape.
        size: how many there are to permute, at least 1.
        seed: chooses the permutations of a run.
        epoch: chooses one of them.

    Returns:
        int64 of the same shape; over all of range(size), every number once.

    Example:
        >>> sorted(permute(np.arange(5), 5, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    assert size >= 1
    keys = round_keys(seed, epoch)
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    out = _feistel(index.reshape(-1).astype(np.uint64), half_bits, keys)
    # The domain is less than four times the range, so this takes a handful of turns.
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], half_bits, keys)
    return out.astype(np.int64).reshape(index.shape)


def _feistel(x: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    """Permute [0, 4**half_bits): a bijection whatever the round function is."""
    shift = np.uint64(half_bits)
    mask = np.uint64(2**half_bits - 1)
    left, right = x >> shift, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Scatter 64 bits (the finaliser of splitmix64, Steele et al. 2014); wraps around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
