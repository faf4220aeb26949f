"""Seeds as a pure function of what they are for: any draw can be made again without replaying those before it."""

from __future__ import annotations

import hashlib
import random

import numpy as np


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed of (seed, epoch, key, ..). The same parts give the same seed in every process."""
    text = "\0".join(f"{type(part).__name__}{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_of(*parts: int | str) -> random.Random:
    return random.Random(seed_of(*parts))


def permutation_of(length: int, *parts: int | str) -> np.ndarray:
    """A permutation of 0..length-1."""
    return np.random.default_rng(seed_of(*parts)).permutation(length)
