"""Stateless seeds: every random number is a pure function of (run seed, purpose, group, replica, step).

A killed run continued at any step therefore draws what the unbroken run would have drawn, and nothing
random has to be saved. The hash is BLAKE2b, the same on every machine; Python's own `hash` is not.
"""

from __future__ import annotations

import hashlib

import numpy as np

MIX_1, MIX_2, GOLDEN = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)


def derive(seed: int, purpose: str, *, group: int = 0, replica: int = 0, step: int = 0) -> int:
    """Derive a 63-bit seed for one purpose.

    seed: the run's `seed` (or `data.seed`)
    purpose: what the numbers are for, such as "init", "order" or "dropout"
    group, replica, step: indices of the group, of the virtual worker and of the step
    """
    text = f"{seed}/{purpose}/{group}/{replica}/{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def mix(values: np.ndarray, *, key: int) -> np.ndarray:
    """Mix uint64 values into uniform uint64 values (splitmix64's finaliser over value and key).

    values: uint64, any shape; the result has the same shape
    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 16.
    """
    with np.errstate(over="ignore"):
        x = (values + np.uint64(key & 0xFFFFFFFFFFFFFFFF)) * GOLDEN
        x = (x ^ (x >> np.uint64(30))) * MIX_1
        x = (x ^ (x >> np.uint64(27))) * MIX_2
        return x ^ (x >> np.uint64(31))


def uniform(values: np.ndarray, *, key: int) -> np.ndarray:
    """Turn uint64 values into float64 uniforms in (0, 1), one per value."""
    return ((mix(values, key=key) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
