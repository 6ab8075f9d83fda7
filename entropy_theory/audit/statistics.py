"""How well predicted changes of entropy agree with realised ones: signs, slopes, R², ranks, with bootstrap intervals.

Everything is a function of sums over clusters, the prompt groups of each audited step, so that a resample is a weighted
sum. Positions of a group share prompt, advantages and prefixes, and all positions of a step share Δθ: the bootstrap
first draws steps, then groups within them, and never single tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropy_theory.intervals import Array, Resampling, percentile_interval

ESTIMATES = ("sign_agreement", "slope", "r2_fitted", "r2_actual", "rank_correlation", "predicted_share")


def agreement(
    predicted: Array,
    realised: Array,
    resampling: Resampling,
    *,
    floor: float = 0.0,
    where: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Compare predicted changes x with realised ones y.

    Formulas, all sums over positions:

        slope b = Σ x y / Σ x²
        R² fitted = 1 − Σ (y − b x)² / Σ y²,  R² actual = 1 − Σ (y − x)² / Σ y²

    about zero and not about the mean, because the theory predicts zero where it predicts nothing. The rank
    correlation is Spearman's; resamples take the ranks in the whole data.

    Args:
        predicted: x, (n,), nats.
        realised: y, (n,), nats.
        resampling: Clusters and weights.
        floor: Changes of at most this size have no sign that could agree.
        where: Positions to compare; default: all.

    Returns:
        ``positions``, and for each of ESTIMATES a dict of ``value``, ``low``, ``high``, the percentile interval; None
        where there is nothing to estimate. ``sign_agreement`` is among positions with a predicted and a realised sign,
        ``predicted_share`` the share of positions with a prediction that is not zero.

    Example:
        >>> x = np.array([1.0, -1.0, 2.0])
        >>> estimates = agreement(x, 3 * x, Resampling.draw([np.array([0, 1, 2])], 10, 0))
        >>> [round(estimates[name]["value"], 6) for name in ESTIMATES]
        [1.0, 3.0, 1.0, 0.555556, 1.0, 1.0]
    """
    from scipy.stats import rankdata

    inside = np.ones(len(predicted), dtype=bool) if where is None else where
    chosen = Resampling(resampling.clusters[inside], resampling.weights)
    x, y = predicted[inside], realised[inside]
    if not x.size:
        return {"positions": 0, **dict.fromkeys(ESTIMATES)}
    signed = (x != 0) & (np.abs(y) > floor)
    n, xx, xy, yy = (chosen.totals(v) for v in (np.ones_like(x), x * x, x * y, y * y))
    u, v = (rankdata(z) - (z.size + 1) / 2 for z in (x, y))
    su, sv, suu, suv, svv = (chosen.totals(z) for z in (u, v, u * u, u * v, v * v))
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold nothing: it is left out below
        estimates = {
            "sign_agreement": chosen.totals((signed & (x * y > 0)).astype(float)) / chosen.totals(signed.astype(float)),
            "slope": xy / xx,
            "r2_fitted": xy * xy / (xx * yy),
            "r2_actual": (2 * xy - xx) / yy,
            "rank_correlation": (suv - su * sv / n) / np.sqrt((suu - su * su / n) * (svv - sv * sv / n)),
            "predicted_share": chosen.totals((x != 0).astype(float)) / n,
        }
    return {"positions": int(x.size), **{name: estimate(values) for name, values in estimates.items()}}


def shares(pieces: Mapping[str, Array], resampling: Resampling) -> dict[str, Any]:
    """Say how large each piece of a sum is: the mean over positions of |piece| / Σ |pieces|; they add up to 1.

    Every position counts alike. Shares of squares would be those of the few positions with the largest changes.

    Args:
        pieces: Per name a number per position, (n,).
        resampling: Clusters and weights of the same positions.

    Example:
        >>> pieces = {"a": np.array([1.0, 2.0]), "b": np.array([-3.0, 2.0])}
        >>> estimates = shares(pieces, Resampling.draw([np.array([0, 1])], 5, 0))
        >>> estimates["a"]["value"], estimates["b"]["value"]
        (0.375, 0.625)
    """
    whole = np.sum([np.abs(piece) for piece in pieces.values()], axis=0)
    inside = whole > 0
    count = resampling.totals(inside.astype(float))
    with np.errstate(divide="ignore", invalid="ignore"):  # a position or a resample may hold nothing
        each = {name: np.where(inside, np.abs(piece) / whole, 0.0) for name, piece in pieces.items()}
        return {name: estimate(resampling.totals(share) / count) for name, share in each.items()}


def deciles(values: Array) -> tuple[NDArray[np.int64], list[dict[str, float]]]:
    """Find the tenth of the data that each value is in, 0 to 9, and the ends of the ten.

    Example:
        >>> tenth, ends = deciles(np.arange(20.0))
        >>> tenth[[0, 1, 2, 19]].tolist(), ends[9]["high"]
        ([0, 0, 1, 9], 19.0)
    """
    edges = np.quantile(values, np.linspace(0, 1, 11))
    tenth = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, 9)
    ends = [{"low": float(f"{low:.4g}"), "high": float(f"{high:.4g}")} for low, high in pairwise(edges)]
    return tenth, ends


def estimate(values: Array) -> dict[str, float] | None:
    """Make a value and its percentile interval of the data's value and the resamples', to six digits.

    Example:
        >>> estimate(np.array([1.0, 0.0, 2.0]))["high"]
        1.95
    """
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not drawn.size:
        return None
    low, high = percentile_interval(drawn)
    return {name: float(f"{v:.6g}") for name, v in (("value", values[0]), ("low", low), ("high", high))}
