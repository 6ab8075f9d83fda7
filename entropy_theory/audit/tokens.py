"""The audit from the tokens' side: which token of a step moves mean entropy, by the tabular theory and exactly.

A step moves the mean entropy of its own contexts by Σ_t g_t D_t times η/n, to first order in the weights, with D the
influence of a token. Where every position has logits of its own, n D_t = −S_c,t. Here the two are compared over the
tokens of a batch. Steps differ in the scale of D, all the more under Adam, so values and ranks are standardised within
each step, and a correlation is the mean of those of the steps, weighted by their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from entropy_theory.audit.statistics import deciles, estimate
from entropy_theory.influence import StepBatch, token_influence
from entropy_theory.influence.model_view import Parameters
from entropy_theory.intervals import Array, Resampling

STRONGEST = 0.03
"""The share of a step's tokens, by absolute value, of which it is asked how many both sides have in common."""

SCATTER = 200  # tokens of each arm that the record keeps for the figure

TOKEN_ESTIMATES = ("pearson", "spearman", "sign_agreement", "strongest_shared")

OVER = ("same", "crossed")


def measure_tokens(
    model: nn.Module,
    before: Parameters,
    batch: StepBatch,
    preconditioner: Mapping[str, Tensor] | None,
    parts: Callable[[Parameters], Mapping[str, float]],
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Compute the influence of each token of a step, on the contexts of its own batch and crossed.

    Args:
        model: What `audit.step.measurable` returns, with the weights before the step.
        before: The trained parameters, by name.
        batch: The tokens.
        preconditioner: P of the optimizer by name; None for plain SGD.
        parts: Maps a slope by name to its inner products with the parts of the step.

    Returns:
        Arrays over the n valid positions in row order: ``influence_same``, and ``influence_crossed`` where there are
        two prompt groups or more: n D, which is −S_c where positions share no parameters; ``centered_discriminant``.
        Scalars: ``influence_total`` Σ g D/n over the same contexts, by forward mode, and ``first_order_NAME`` for the
        parts, ⟨∇H̄, part⟩, by reverse mode. The part of this step's gradient is a multiple of ``influence_total``.
    """
    first_order: dict[str, float] = {}

    def metric(slope: Parameters) -> Parameters:
        return slope if preconditioner is None else {name: preconditioner[name] * v for name, v in slope.items()}

    def measured(slope: Parameters) -> Parameters:  # here ∇H̄ comes by: no other pass is needed for it
        first_order.update({f"first_order_{name}": value for name, value in parts(slope).items()})
        return metric(slope)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in before)
    try:
        same = token_influence(model, batch, preconditioner=measured, check="none")
        arrays = {
            "influence_same": same.values[batch.valid] * same.count,
            "centered_discriminant": same.centered_discriminant[batch.valid],
        }
        if len(batch.group_ids[batch.valid.any(-1)].unique()) > 1:
            crossed = token_influence(model, batch, over="crossed", preconditioner=metric, check="none")
            arrays["influence_crossed"] = crossed.values[batch.valid] * crossed.count
    finally:
        model.requires_grad_(False)
    arrays = {name: value.cpu() for name, value in arrays.items()}
    return arrays, {"influence_total": same.total} | first_order


def token_agreement(
    predicted: Array,
    influence: Array,
    steps: NDArray[np.int64],
    resampling: Resampling,
    where: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Compare what the tabular theory says of each token with its influence.

    Args:
        predicted: −S_c or −g S_c, (n,).
        influence: n D or n g D, (n,).
        steps: The step of each token, (n,).
        resampling: Clusters and weights.
        where: Tokens to compare; default: all.

    Returns:
        ``tokens``, and for each of TOKEN_ESTIMATES a dict of ``value``, ``low``, ``high``; None where there is nothing
        to estimate: ``pearson`` and ``spearman``, means of the steps' correlations; ``sign_agreement``, the share of
        tokens with the same sign among those with two; ``strongest_shared``, the share of the STRONGEST of each step by
        |influence| that are also the strongest by |predicted|. Resamples take ranks and the strongest as in the data.

    Example:
        >>> x = np.array([1.0, -1.0, 2.0])
        >>> resampling = Resampling.draw([np.array([0, 1, 2])], 10, 0)
        >>> estimates = token_agreement(x, 3 * x, np.zeros(3, dtype=np.int64), resampling)
        >>> [round(estimates[name]["value"], 6) for name in TOKEN_ESTIMATES]
        [1.0, 1.0, 1.0, 1.0]
    """
    from scipy.stats import rankdata

    inside = np.ones(len(predicted), dtype=bool) if where is None else where
    chosen = Resampling(resampling.clusters[inside], resampling.weights)
    x, y, step = predicted[inside], influence[inside], steps[inside]
    if not x.size:
        return {"tokens": 0, **dict.fromkeys(TOKEN_ESTIMATES)}
    values = [np.zeros_like(x) for _ in range(4)]
    top_x, top_y = np.zeros(x.size, dtype=bool), np.zeros(x.size, dtype=bool)
    for number in np.unique(step):
        of_step = step == number
        for place, column in enumerate((x[of_step], y[of_step], rankdata(x[of_step]), rankdata(y[of_step]))):
            values[place][of_step] = _standardised(column)
        top_x[of_step], top_y[of_step] = _strongest(x[of_step]), _strongest(y[of_step])
    signed = (x != 0) & (y != 0)

    def share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Array:
        return chosen.totals(part.astype(float)) / chosen.totals(whole.astype(float))

    def correlation(u: Array, v: Array) -> Array:
        n, su, sv, suu, suv, svv = (chosen.totals(w) for w in (np.ones_like(u), u, v, u * u, u * v, v * v))
        result: Array = (suv - su * sv / n) / np.sqrt((suu - su * su / n) * (svv - sv * sv / n))
        return result

    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold nothing: it is left out
        estimates = {
            "pearson": correlation(values[0], values[1]),
            "spearman": correlation(values[2], values[3]),
            "sign_agreement": share(signed & (np.sign(x) == np.sign(y)), signed),
            "strongest_shared": share(top_x & top_y, top_y),
        }
    return {"tokens": int(x.size), **{name: estimate(values) for name, values in estimates.items()}}


def _standardised(values: Array) -> Array:
    spread = values.std()
    return (values - values.mean()) / spread if spread else np.zeros_like(values)


def _in_units_of_rms(values: Array, steps: NDArray[np.int64]) -> Array:
    squares = np.bincount(steps, weights=values**2) / np.bincount(steps)
    units: Array = np.sqrt(np.where(squares > 0, squares, 1.0))[steps]
    return values / units


def _strongest(values: Array) -> NDArray[np.bool_]:
    order = np.argsort(-np.abs(values), kind="stable")
    top = np.zeros(len(values), dtype=bool)
    top[order[: math.ceil(STRONGEST * len(values))]] = True
    return top


def tokens_summary(steps: Sequence[Mapping[str, Array]], resamples: int) -> dict[str, Any]:
    """Compare over the tokens of several measured steps.

    Args:
        steps: The arrays of each.
        resamples: Bootstrap resamples.

    Returns:
        For "same" and "crossed", None where no step has it: ``plain``, −S_c against n D, and ``weighted``, −g S_c
        against n g D over the tokens with g ≠ 0. In each: ``overall``, ``quadrants`` and ``deciles`` of entropy, as
        `token_agreement`. Of "same" also ``scatter``: −S_c and n D of some tokens over the step's root mean square.
    """
    return {over: _summary(steps, over, resamples) for over in OVER}


def _summary(steps: Sequence[Mapping[str, Array]], over: str, resamples: int) -> dict[str, Any] | None:
    having = [arrays for arrays in steps if f"influence_{over}" in arrays]
    if not having:
        return None
    resampling = Resampling.draw([arrays["group"] for arrays in having], resamples, seed=0)
    number = np.concatenate([np.full(len(a["group"]), i) for i, a in enumerate(having)])
    names = ("centered_discriminant", f"influence_{over}", "coefficient", "quadrant", "entropy")
    S_c, D, g, quadrant, entropy = (np.concatenate([arrays[name] for arrays in having]) for name in names)
    tenth, edges = deciles(entropy)
    result: dict[str, Any] = {}
    if over == "same":
        some = np.random.default_rng(0).permutation(len(g))[:SCATTER]
        columns = {"predicted": _in_units_of_rms(-S_c, number)[some], "influence": _in_units_of_rms(D, number)[some]}
        result["scatter"] = {name: [float(f"{v:.4g}") for v in column] for name, column in columns.items()}
    for kind, weight, inside in (("plain", np.ones_like(g), np.ones(len(g), dtype=bool)), ("weighted", g, g != 0)):
        x, y = -weight * S_c, weight * D

        def compared(where: NDArray[np.bool_], x: Array = x, y: Array = y) -> dict[str, Any]:
            return token_agreement(x, y, number, resampling, where)

        result[kind] = {
            "overall": compared(inside),
            "quadrants": {f"q{q}": compared(inside & (quadrant == q)) for q in (1, 2, 3, 4)},
            "deciles": [{**ends, **compared(inside & (tenth == i))} for i, ends in enumerate(edges)],
        }
    return result


def token_row(arrays: Mapping[str, Array]) -> dict[str, float]:
    """Say what one step says by itself: for "same" and "crossed", each of TOKEN_ESTIMATES, as ``pearson_same``."""
    alone = Resampling.draw([arrays["group"]], 1, seed=0)
    together = np.zeros(len(arrays["group"]), dtype=np.int64)
    row: dict[str, float] = {}
    for over in OVER:
        if f"influence_{over}" in arrays:
            x = -arrays["centered_discriminant"]
            estimates = token_agreement(x, arrays[f"influence_{over}"], together, alone)
            row |= {f"{name}_{over}": e["value"] for name in TOKEN_ESTIMATES if (e := estimates[name])}
    return row


MEANS = {"token": "mean_token", "context": "mean_context", "now": "first_order_now", "in_all": "mean_parameters"}
"""The predictions of the change of mean entropy, and the numbers of a step's row that hold them."""


def means_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the predicted changes of mean entropy with the realised ones, over the measured steps of an arm.

    Args:
        rows: The rows of the steps.

    Returns:
        ``steps``; for each of MEANS ``signs_right``, at how many the sign was right, and ``slope`` Σ x y / Σ x² of the
        realised change y on the predicted one x. ``held_out``: means over the steps of the change at fixed contexts and
        of the state shift in rollouts that did not make the step, with the standard errors of these means;
        ``smallest_sample_share``, the least effective sample size over the tokens; None for errors of single groups.
    """
    y = np.array([row["mean_realised"] for row in rows])
    summary: dict[str, Any] = {"steps": len(rows)}
    for name, key in MEANS.items():
        x = np.array([row[key] for row in rows])
        slope = float(f"{x @ y / (x @ x):.6g}") if x.any() else None
        summary[name] = {"signs_right": int(np.sum(x * y > 0)), "slope": slope}
    held_out = {}
    for part in ("fixed", "shift", "change"):
        values = [
            row[f"held_out_{part}"] if part != "change" else row["held_out_fixed"] + row["held_out_shift"]
            for row in rows
        ]
        errors = [row.get(f"held_out_{part}_error") for row in rows]
        spread = None if None in errors else math.sqrt(math.fsum(e * e for e in errors if e)) / len(rows)
        held_out[part] = {"mean": float(f"{np.mean(values):.6g}"), "error": spread and float(f"{spread:.6g}")}
    share = min(row["held_out_effective_sample_size"] / row["held_out_tokens"] for row in rows)
    return {**summary, "held_out": held_out, "smallest_sample_share": float(f"{share:.4g}")}
