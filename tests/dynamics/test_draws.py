"""Counter-based random numbers: published vectors, the compiled twin, uniformity, independence of the layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from entropy_theory.dynamics.draws import Draw, distinct_places, generator, philox, policy_uniforms
from entropy_theory.dynamics.kernels import arithmetic

ONES = 0xFFFFFFFF
VECTORS = [  # kat_vectors of Random123, "philox4x32 10": counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_philox_has_the_published_vectors(counter: tuple, key: tuple, output: tuple) -> None:
    words = [np.uint64(word) for word in (*counter, *key)]
    assert tuple(philox(np.array(words[:4]), np.array(words[4:])).tolist()) == output
    assert tuple(int(word) for word in arithmetic.philox(*words)) == output


@pytest.mark.parametrize("group_size", [2, 5, 16])
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (2**31 - 1, 2**31 - 2)])
def test_compiled_twin_has_the_same_bits(group_size: int, seed: int, step: int) -> None:
    policies = range(2**31 - 9, 2**31 - 1)
    expected = policy_uniforms(seed, Draw.TOKENS, step, policies, group_size)
    for row, policy in enumerate(policies):
        out = np.empty(group_size)
        arithmetic.fill_uniforms(seed, int(Draw.TOKENS), step, policy, out)
        assert np.array_equal(out, expected[row].numpy())


def test_numbers_are_uniform_and_uncorrelated() -> None:
    """10⁵ numbers from neighbouring policies and steps; the draw is fixed, so its p-values are too."""
    numbers = torch.stack([policy_uniforms(7, Draw.TOKENS, step, range(1000), 10) for step in range(10)]).numpy()
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert stats.kstest(numbers.reshape(-1), "uniform").pvalue > 1e-3
    for axis in range(3):  # neighbours in step, policy and sample
        x, y = (np.take(numbers, range(a, numbers.shape[axis] - 1 + a), axis).reshape(-1) for a in (0, 1))
        assert stats.pearsonr(x, y).pvalue > 1e-3
    low = (numbers.reshape(-1) * 2.0**53).astype(np.int64)
    for bit in (0, 1, 20, 21, 32, 52):  # the words' seam is at bit 21
        assert stats.binomtest(int((low >> bit & 1).sum()), low.size).pvalue > 1e-3
    assert np.unique(numbers).size == numbers.size


def test_a_number_depends_on_its_place_alone() -> None:
    whole = policy_uniforms(3, Draw.TOKENS, 5, range(20), 7)
    assert torch.equal(policy_uniforms(3, Draw.TOKENS, 5, range(11, 20), 7), whole[11:])
    assert torch.equal(policy_uniforms(3, Draw.TOKENS, 5, range(20), 4), whole[:, :4])
    for other in ((4, Draw.TOKENS, 5), (3, Draw.TOKENS, 6), (3, Draw.TRUNCATED, 5)):
        assert not (policy_uniforms(*other, range(20), 7) == whole).any()


def test_places_are_different_and_equally_likely() -> None:
    counts = np.zeros(6)
    for seed in range(3000):
        places = distinct_places(6, 4, generator(seed, Draw.PAIRS))
        assert len(set(places.tolist())) == 4
        counts[places] += 1
    # each place has probability 4/6; five deviations of a count are 129
    assert np.abs(counts - 2000).max() < 129
