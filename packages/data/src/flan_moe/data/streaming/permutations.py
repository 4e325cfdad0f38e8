"""Parts of many random permutations at once.

A task's samples are walked through in random order, each round in another. An epoch needs a part of
a round of every task and setting: thousands of small permutations, of which a generator each would
take longer than all the rest. Here each element gets a hash of (seed, group, round, element), and
the order of the hashes is the permutation.

Legend: G permutations, N elements that are returned.
"""

from __future__ import annotations

import numpy as np

LARGE = 1 << 16  # from here on a generator per permutation is faster, and exact in its ties
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def mixed(values: np.ndarray) -> np.ndarray:
    """Well-mixed uint64 of the same shape: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = np.asarray(values, np.uint64)
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[2])


def permutation_keys(seed: int, *parts: np.ndarray) -> np.ndarray:
    """A key per permutation from what identifies it: arrays of equal length (G,)."""
    key_G = mixed(np.uint64(seed % 2**64) + _STEP * np.ones(len(parts[0]), np.uint64))
    for part_G in parts:
        key_G = mixed((key_G + np.asarray(part_G).astype(np.uint64)) * _STEP + np.uint64(1))
    return key_G


def permuted_parts(
    counts: np.ndarray, keys: np.ndarray, begins: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Elements ``begin`` to ``end - 1`` of each permutation, as sets.

    Args:
        counts: (G,) elements of each permutation.
        keys: (G,) uint64, see `permutation_keys`.
        begins: (G,) first place.
        ends: (G,) end of the places.

    Returns:
        (N,) number of the permutation and (N,) element; whole permutations are in ascending order.
    """
    whole_G = (begins == 0) & (ends == counts)
    large_G = ~whole_G & (counts > LARGE)
    small_G = ~whole_G & ~large_G
    groups, elements = [], []
    for number in np.flatnonzero(large_G).tolist():
        order = np.random.default_rng(int(keys[number])).permutation(int(counts[number]))
        elements.append(order[begins[number] : ends[number]])
        groups.append(np.full(len(elements[-1]), number))
    number_W = np.flatnonzero(whole_G)
    groups.append(np.repeat(number_W, counts[number_W]))
    elements.append(_ramps(counts[number_W]))
    number_S = np.flatnonzero(small_G)
    if len(number_S):
        chosen = _by_hash(counts[number_S], keys[number_S], begins[number_S], ends[number_S])
        groups.append(number_S[chosen[0]])
        elements.append(chosen[1])
    return np.concatenate(groups).astype(np.int64), np.concatenate(elements).astype(np.int64)


def _by_hash(
    counts: np.ndarray, keys: np.ndarray, begins: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same by one sort: group in the high bits, then hash, then element, which breaks ties."""
    element_bits = int(counts.max() - 1).bit_length()
    group_bits = (len(counts) - 1).bit_length()
    group_N = np.repeat(np.arange(len(counts)), counts)
    element_N = _ramps(counts)
    packed_N = element_N.astype(np.uint64)
    hash_N = mixed(keys[group_N] + packed_N * _STEP)
    hash_bits = 64 - element_bits - group_bits
    packed_N |= (hash_N >> np.uint64(64 - hash_bits)) << np.uint64(element_bits)
    if group_bits:
        packed_N |= group_N.astype(np.uint64) << np.uint64(64 - group_bits)
    packed_N.sort()
    place_N = element_N  # sorted by group, so the places of a group count up as its elements did
    wanted_N = (place_N >= begins[group_N]) & (place_N < ends[group_N])
    mask = np.uint64((1 << element_bits) - 1)
    return group_N[wanted_N], (packed_N[wanted_N] & mask).astype(np.int64)


def _ramps(counts: np.ndarray) -> np.ndarray:
    """0 to count - 1 for each count, one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - counts, counts)
