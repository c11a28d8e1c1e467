"""From seeds and names to Philox keys."""

from __future__ import annotations

import operator

import numpy as np

from tazza.errors import ArgumentError

__all__ = ["checked_seed", "derived_key", "fresh_seed", "seed_key"]


def fresh_seed() -> int:
    """Draw 128 bits of entropy from the operating system."""
    entropy = np.random.SeedSequence().entropy
    assert isinstance(entropy, int)
    return entropy


def checked_seed(seed: object) -> int:
    """Return the seed as an int, or raise `ArgumentError` unless it is a non-negative integer of any size."""
    expected = "a non-negative integer of any size, or None for fresh entropy"
    if isinstance(seed, bool):
        raise ArgumentError.of("seed", seed, expected)
    try:
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError as error:
        raise ArgumentError.of("seed", seed, expected) from error
    if value < 0:
        raise ArgumentError.of("seed", seed, expected)
    return value


def seed_key(seed: int) -> int:
    """Return the 128-bit key that ``numpy.random.Philox(seed)`` has, its first word in the low half."""
    low, high = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    return int(low) | int(high) << 64


def derived_key(parent: int, kind: str, *parts: str | int) -> int:
    """Return the key of a child stream: a 128-bit BLAKE2b hash of the parent's key, the kind and the parts.

    Every part is written as type, length and content, so that different parts never read the same. (NumPy's
    ``spawn_key`` is not used because it joins numbers without their lengths: 2**32 + 5 and (5, 1) collide there. It
    also takes 8 times longer, and every task needs a child.)
    """
    import hashlib  # late: it loads OpenSSL, and most programs derive no stream before their first task

    digest = hashlib.blake2b(parent.to_bytes(16, "little"), digest_size=16, person=b"tazza.rng")
    for part in (kind, *parts):
        data = part.encode() if isinstance(part, str) else _integer_bytes(part)
        digest.update(b"%c%d:" % (b"s" if isinstance(part, str) else b"i", len(data)) + data)
    return int.from_bytes(digest.digest(), "little")


def _integer_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
