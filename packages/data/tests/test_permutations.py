"""Parts of permutations: every round is a permutation, cut without gap or overlap."""

import numpy as np
import pytest

from flan_moe.data.streaming.permutations import LARGE, permutation_keys, permuted_parts


def parts(counts, begins, ends, seed=0, rounds=None):
    groups = np.arange(len(counts))
    keys = permutation_keys(seed, groups, groups * 0 if rounds is None else np.array(rounds))
    return permuted_parts(np.array(counts), keys, np.array(begins), np.array(ends))


def split(found, groups):
    return [np.sort(found[1][found[0] == group]).tolist() for group in range(groups)]


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_two_cuts_of_a_round_are_all_of_it_once(cut):
    counts = [7, 100, 1000, LARGE + 1]
    first = split(parts(counts, [0] * 4, [cut] * 4), 4)
    second = split(parts(counts, [cut] * 4, counts), 4)
    for count, one, two in zip(counts, first, second, strict=True):
        assert len(one) == cut
        assert sorted(one + two) == list(range(count))


def test_a_part_does_not_depend_on_the_others_asked_for_with_it():
    keys = permutation_keys(5, np.array([3, 9]), np.array([0, 4]))
    both = permuted_parts(np.array([50, 90]), keys, np.array([10, 20]), np.array([30, 60]))
    for number, (count, begin, end) in enumerate([(50, 10, 30), (90, 20, 60)]):
        one = slice(number, number + 1)
        alone = permuted_parts(np.array([count]), keys[one], np.array([begin]), np.array([end]))
        assert sorted(alone[1]) == sorted(both[1][both[0] == number])


def test_rounds_groups_and_seeds_differ():
    def half(**options):
        return [tuple(part) for part in split(parts([200] * 3, [0] * 3, [100] * 3, **options), 3)]

    found = half() + half(seed=1) + half(rounds=[1, 1, 1]) + half(rounds=[2, 2, 2])
    assert len(set(found)) == len(found)


def test_every_element_is_as_likely_as_any_other():
    # 3,000 permutations of 8: how often each element is among the first 3, and each pair together.
    found = parts([8] * 3000, [0] * 3000, [3] * 3000)
    chosen = np.zeros((3000, 8))
    chosen[found] = 1
    single, pairs = chosen.sum(0), (chosen.T @ chosen)[np.triu_indices(8, 1)]
    for counts, chance in ((single, 3 / 8), (pairs, 3 * 2 / (8 * 7))):
        deviation = (counts - 3000 * chance) / np.sqrt(3000 * chance * (1 - chance))
        assert np.abs(deviation).max() < 4


def test_a_whole_round_needs_no_order():
    assert parts([4, 2], [0, 0], [4, 2])[1].tolist() == [0, 1, 2, 3, 0, 1]
