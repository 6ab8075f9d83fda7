"""Masked reductions against NumPy, and what they do at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropy_theory.control import DistributedReducer, LocalReducer, Reducer
from entropy_theory.control import reducers as r
from entropy_theory.control.random import uniform_keys

values_and_mask = st.lists(st.tuples(st.floats(-1e3, 1e3), st.booleans()), min_size=1, max_size=40).filter(
    lambda pairs: any(inside for _, inside in pairs)
)


def split(pairs: list[tuple[float, bool]]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    values = torch.tensor([v if inside else float("nan") for v, inside in pairs], dtype=torch.float64)
    mask = torch.tensor([inside for _, inside in pairs])
    return values, mask, values[mask].numpy()


@given(values_and_mask)
def test_moments_and_extremes(pairs: list[tuple[float, bool]]) -> None:
    values, mask, inside = split(pairs)
    count, mean, std = r.masked_moments(values, mask)
    size = np.abs(inside).max()
    assert count == r.masked_count(mask) == len(inside)
    assert mean == pytest.approx(inside.mean(), rel=1e-12, abs=1e-13 * size)
    assert std == pytest.approx(inside.std(), rel=1e-9, abs=1e-13 * size)
    assert r.masked_mean(values, mask) == mean
    assert r.masked_min_max(values, mask) == (inside.min(), inside.max())


@given(values_and_mask, st.floats(0, 1))
def test_quantile_is_numpys_linear_one(pairs: list[tuple[float, bool]], q: float) -> None:
    values, mask, inside = split(pairs)
    # a rank within 1e-9 n of an integer is that integer: the value moves by at most 1e-9 n of the gap
    slack = 1e-8 * len(inside) * (np.ptp(inside) + 1e-3)
    assert r.masked_quantile(values, mask, q) == pytest.approx(np.quantile(inside, q), rel=1e-12, abs=slack)


def test_quantile_meets_the_order_statistic() -> None:
    values = torch.arange(11.0)
    for tenths in range(11):
        assert r.masked_quantile(values, values >= 0, 1 - tenths / 10) == 10 - tenths


@given(values_and_mask, st.integers(0, 45))
def test_top_k_takes_the_largest_and_of_equals_the_first(pairs: list[tuple[float, bool]], k: int) -> None:
    values, mask, _ = split([(round(v / 300), inside) for v, inside in pairs])  # many ties
    expected = torch.zeros_like(mask)
    order = sorted((-float(values[i]), i) for i in range(len(pairs)) if mask[i])
    expected[[i for _, i in order[:k]]] = True
    assert torch.equal(r.masked_top_k(values, mask, k), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, m: r.masked_mean(x, m),
        lambda x, m: r.masked_min_max(x, m),
        lambda x, m: r.masked_quantile(x, m, 0.5),
    ],
)
def test_statistics_of_nothing_are_refused(call) -> None:
    with pytest.raises(ValueError, match="mask: expected at least one valid token over all ranks"):
        call(torch.ones(3), torch.zeros(3, dtype=torch.bool))


def test_bad_arguments() -> None:
    x, mask = torch.ones(3), torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"q: expected a number in \[0, 1\], received 1.5"):
        r.masked_quantile(x, mask, 1.5)
    with pytest.raises(ValueError, match="k: expected a number of tokens ≥ 0, received -1"):
        r.masked_top_k(x, mask, -1)
    with pytest.raises(ValueError, match="group: expected an initialised process group"):
        DistributedReducer()


def test_local_reducer() -> None:
    reducer = LocalReducer()
    assert isinstance(reducer, Reducer)
    assert (reducer.rank, reducer.world_size) == (0, 1)
    assert reducer.sum(torch.ones(2)).dtype == torch.float64
    assert reducer.sum(torch.ones(2, dtype=torch.bool)).tolist() == [1, 1]
    assert not reducer.sum(torch.ones(2, requires_grad=True)).requires_grad


def test_the_mean_of_many_float32_values_does_not_drift() -> None:
    values = torch.full((1000, 1000), 0.1)
    _, mean, std = r.masked_moments(values, torch.ones_like(values, dtype=torch.bool))
    assert mean == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)
    assert std < 1e-12


def test_uniform_keys_number_the_valid_tokens_in_order() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    keys = uniform_keys(mask, torch.Generator().manual_seed(5))
    drawn = torch.rand(4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(keys[mask], drawn)
    assert not keys[~mask].any()
