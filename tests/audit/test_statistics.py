"""Agreement against NumPy's and SciPy's own answers, and a bootstrap that resamples groups and not tokens."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from entropy_theory.audit.statistics import ESTIMATES, Resampling, agreement, shares


def data(n: int = 400, seed: int = 0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(n) * generator.choice([0.0, 1.0, 3.0], n)
    return x, 0.7 * x + generator.standard_normal(n), generator.integers(0, 20, n)


def test_values_are_those_of_other_libraries() -> None:
    x, y, groups = data()
    found = agreement(x, y, Resampling.draw([groups], 50, 0), floor=0.1)
    (slope,), (residual,), *_ = np.linalg.lstsq(x[:, None], y, rcond=None)
    signed = (x != 0) & (np.abs(y) > 0.1)
    expected = {
        "sign_agreement": np.mean(np.sign(x[signed]) == np.sign(y[signed])),
        "slope": slope,
        "r2_fitted": 1 - residual / np.sum(y**2),
        "r2_actual": 1 - np.sum((y - x) ** 2) / np.sum(y**2),
        "rank_correlation": stats.spearmanr(x, y).statistic,
        "predicted_share": np.count_nonzero(x) / x.size,
    }
    assert expected.keys() == set(ESTIMATES)
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, rel=1e-5), name  # recorded with six digits
        assert found[name]["low"] <= found[name]["high"]


def test_intervals_do_not_shrink_when_tokens_are_copied() -> None:
    x, y, groups = data()
    once = agreement(x, y, Resampling.draw([groups], 400, 0))
    copies = np.tile(np.arange(x.size), 9)
    many = agreement(x[copies], y[copies], Resampling.draw([groups[copies]], 400, 0))
    for name in ("slope", "sign_agreement"):
        assert many[name] == pytest.approx(once[name], rel=1e-5)


def test_the_interval_covers_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        steps = generator.normal(1.0, 0.3, 12).repeat(10 * 5)  # each step has a slope of its own
        x = generator.standard_normal(600)
        found = agreement(x, steps * x, Resampling.draw([np.arange(10).repeat(5)] * 12, 200, seed))
        covered += found["slope"]["low"] <= 1.0 <= found["slope"]["high"]
    # 95 % of 200 with 12 steps; a percentile bootstrap over so few falls some per cent short
    assert 172 <= covered <= 199


def test_a_part_of_the_positions() -> None:
    x, y, groups = data()
    resampling = Resampling.draw([groups], 20, 0)
    where = x > 0
    assert agreement(x, y, resampling, where=where)["slope"]["value"] == pytest.approx(
        float(x[where] @ y[where] / (x[where] @ x[where])), rel=1e-5
    )
    empty = agreement(x, y, resampling, where=np.zeros(x.size, dtype=bool))
    assert empty == {"positions": 0, **dict.fromkeys(ESTIMATES)}
    nothing = agreement(0 * x, y, resampling)
    assert nothing["slope"] is None
    assert nothing["sign_agreement"] is None
    assert nothing["predicted_share"]["value"] == 0


def test_shares_add_up() -> None:
    x, y, groups = data()
    found = shares({"a": x, "b": y, "c": 0 * x}, Resampling.draw([groups], 20, 0))
    assert sum(e["value"] for e in found.values()) == pytest.approx(1, abs=1e-5)
    assert found["c"]["value"] == 0


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        Resampling.draw([], 10, 0)
