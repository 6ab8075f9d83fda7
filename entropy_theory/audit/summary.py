"""What all measured steps of an audit say together: agreement by predictor, quadrant and entropy, with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from entropy_theory.audit.config import Arm, AuditConfig
from entropy_theory.audit.statistics import Array, Resampling, agreement, deciles, shares
from entropy_theory.audit.step import PIECES, read_step
from entropy_theory.audit.tokens import means_summary, token_row, tokens_summary

PREDICTORS = {"token": "token_1", "context": "context_1", "parameters": "parameters"}
"""The predictions that are compared, and the arrays of a measured step that hold them."""

SCATTER = 200  # positions of each arm that the record keeps for the figure


def summarise(config: AuditConfig) -> dict[str, Any]:
    """Summarise the measured steps of an audit.

    Returns:
        ``steps``: a row for each arm, seed and step with its scalars and mean changes. ``arms``: for each arm
        ``predictors``, the `agreement` of each of PREDICTORS and of the second orders ``token_2`` and ``context_2`` at
        the fitted step size; ``quadrants`` and ``deciles``, the same by quadrant of (A, S_c) and by decile of entropy;
        ``pieces``, their `shares` of the first order; ``own_effect``, the agreement of ``token`` and ``context`` with
        the part of the first order that they predict, not with the realised change; ``scatter``, some positions;
        ``tokens``, the `tokens_summary`; ``means``, the `means_summary`.
    """
    rows, arms = [], {}
    for arm in config.arms:
        steps = [read_step(config.file(arm, seed, at)) for seed in config.seeds for at in config.at]
        of_arm = [row for seed in config.seeds for row in step_rows(config, arm, seed)]
        arms[arm] = _arm([arrays for arrays, _ in steps], max(s["noise_floor"] for _, s in steps), config)
        arms[arm]["tokens"] = tokens_summary([arrays for arrays, _ in steps], config.resamples)
        arms[arm]["means"] = means_summary(of_arm)
        rows += of_arm
    return {"steps": rows, "arms": arms}


def step_rows(config: AuditConfig, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """Say what each measured step of a run says by itself.

    Returns:
        A row per step: its scalars, means over positions, signs and R² of the predictions, and two checks relative to
        the largest change: ``sum_error``, the pieces by reverse mode against the whole by forward mode, and
        ``output_error``, the closed form of the output matrix against autograd. Then the step's `token_row`.
    """
    return [_row(arm, seed, *read_step(config.file(arm, seed, step))) for step in config.at]


def _row(arm: str, seed: int, arrays: dict[str, Array], scalars: dict[str, float]) -> dict[str, Any]:
    means = {f"mean_{name}": arrays[key].mean() for name, key in PREDICTORS.items()}
    alone, floor = Resampling.draw([arrays["group"]], 1, seed=0), scalars["noise_floor"]
    for name, key in PREDICTORS.items():
        estimated = agreement(arrays[key], arrays["realised"], alone, floor=floor)
        means |= {f"{kind}_{name}": e["value"] for kind in ("sign_agreement", "r2_fitted") if (e := estimated[kind])}
    whole, chosen = sum(arrays[name] for name in PIECES), arrays["chosen"]
    size = np.abs(arrays["parameters"][chosen]).max()
    checks = {"sum_error": np.abs(whole - arrays["parameters"][chosen]).max() / size}
    if "output_closed" in arrays:
        gap = np.abs(arrays["output"] - arrays["output_closed"]).max()
        checks["output_error"] = gap / np.abs(arrays["output"]).max()
    numbers = {"mean_entropy": arrays["entropy"].mean(), "mean_realised": arrays["realised"].mean()} | means | checks
    numbers |= token_row(arrays)
    row = {name: float(f"{float(value):.6g}") for name, value in (scalars | numbers).items()}
    return {"arm": arm, "seed": seed, "positions": len(arrays["entropy"]), **row, "step": int(scalars["step"])}


def _arm(steps: list[dict[str, Array]], floor: float, config: AuditConfig) -> dict[str, Any]:
    def joined(name: str) -> Array:
        return np.concatenate([arrays[name] for arrays in steps])

    resampling = Resampling.draw([arrays["group"] for arrays in steps], config.resamples, seed=0)
    realised, entropy, quadrant = joined("realised"), joined("entropy"), joined("quadrant")
    predictions = {name: joined(key) for name, key in PREDICTORS.items()}

    def compared(where: Any = None) -> dict[str, Any]:
        return {n: agreement(x, realised, resampling, floor=floor, where=where) for n, x in predictions.items()}

    overall = compared()
    for name in ("token", "context"):
        estimated = overall[name]["slope"]
        if estimated is not None:  # the second order at the step size that the first one was fitted to
            x = estimated["value"] * predictions[name] + estimated["value"] ** 2 * joined(f"{name}_2")
            overall[f"{name}_2"] = agreement(x, realised, resampling, floor=floor)
    tenth, edges = deciles(entropy)
    taken = Resampling.draw([arrays["group"][arrays["chosen"]] for arrays in steps], config.resamples, seed=0)
    pieces = {name: joined(name) for name in PIECES}
    predicted_part = {"token": pieces["own"], "context": pieces["own"] + pieces["context"]}
    own_effect = {}
    for name, part in predicted_part.items():
        x = np.concatenate([arrays[f"{name}_1"][arrays["chosen"]] for arrays in steps])
        own_effect[name] = agreement(x, part, taken)
    some = np.random.default_rng(0).permutation(len(realised))[:SCATTER]
    columns = {"realised": realised, "entropy": entropy, **predictions}
    return {
        "positions": len(realised),
        "groups": resampling.weights.shape[1],
        "rms_realised": float(f"{np.sqrt(np.mean(realised**2)):.6g}"),
        "predictors": overall,
        "quadrants": {f"q{q}": compared(quadrant == q) for q in (1, 2, 3, 4)} | {"none": compared(quadrant == 0)},
        "deciles": [{**ends, **compared(tenth == i)} for i, ends in enumerate(edges)],
        "pieces": shares(pieces, taken),
        "own_effect": own_effect,
        "scatter": {name: [float(f"{v:.4g}") for v in column[some]] for name, column in columns.items()},
    }
