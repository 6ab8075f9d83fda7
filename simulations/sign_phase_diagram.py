"""Over (p, H): the predicted and the true sign of the change of entropy, and the step at which a rise turns to a fall.

    python simulations/sign_phase_diagram.py --quick
    python simulations/sign_phase_diagram.py --processes 2

At each point policies are built in which the token has probability p and the policy entropy H, with random rests. One
moved logit: (p, H) decide everything (section B.4 of the theory notes), and the step at which entropy is back, found by
bisection on the whole policy, is held against `sign_flip_radius`. A GRPO step on the token: the rest matters, and the
share of policies with the predicted sign is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sweep
from numpy.typing import NDArray

from entropy_theory.program import run_script

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class PhaseConfig(sweep.SweepOptions):
    """Draw the phase diagram.

    Attributes:
        vocab_size: V.
        probs: Points along p, evenly spaced in the logit.
        entropies: Points along H, evenly spaced up to log V.
        rests: Random rests at each point.
        sizes: Step sizes.
        seeds: Seeds of the rests.
    """

    vocab_size: int = 100
    probs: int = 24
    entropies: int = 24
    rests: int = 16
    sizes: tuple[float, ...] = (0.1, 1.0, 3.0)
    seeds: tuple[int, ...] = (0, 1, 2)


QUICK: dict[str, Any] = {"vocab_size": 20, "probs": 8, "entropies": 8, "rests": 4, "seeds": (0, 1)}


@dataclass(frozen=True)
class PhasePoints:
    """The whole diagram with the random rests of one seed; fields as in the configuration."""

    vocab_size: int
    probs: int
    entropies: int
    rests: int
    sizes: tuple[float, ...]
    seed: int


def grid(task: PhasePoints) -> FloatArray:
    """The points (p, H) that a policy of V tokens can have, away from the edges by 2 % of the range, (n, 2)."""
    from scipy.special import expit, xlogy

    p = expit(np.linspace(-6.0, 6.0, task.probs))
    H = np.log(task.vocab_size) * (np.arange(task.entropies) + 0.5) / task.entropies
    points = np.array([(a, b) for a in p for b in H])
    own = -xlogy(points[:, 0], points[:, 0]) - xlogy(1 - points[:, 0], 1 - points[:, 0])
    rest = (points[:, 1] - own) / (1 - points[:, 0]) / np.log(task.vocab_size - 1)
    chosen: FloatArray = points[(rest > 0.02) & (rest < 0.98)]
    return chosen


def policies(points: FloatArray, task: PhasePoints) -> FloatArray:
    """Logits with the token first, normalised: probability p, entropy H, (n, rests, V)."""
    from entropy_theory.theory.single_logit import rest_entropy

    rng = np.random.default_rng([task.seed, 11])
    z = rng.normal(size=(len(points), task.rests, task.vocab_size - 1))
    wanted = rest_entropy(points[:, 0], points[:, 1])[:, np.newaxis]
    low, high = np.full(z.shape[:2], -12.0), np.full(z.shape[:2], 12.0)  # of the logarithm of the scale
    for _ in range(60):
        middle = (low + high) / 2
        more = entropies(z * np.exp(middle)[..., np.newaxis]) > wanted
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    z = normalised(z * np.exp((low + high) / 2)[..., np.newaxis])
    p = np.broadcast_to(points[:, :1, np.newaxis], (*z.shape[:2], 1))
    return np.concatenate([np.log(p), z + np.log1p(-p)], axis=-1)


def normalised(logits: FloatArray) -> FloatArray:
    """Log-probabilities."""
    import entropy_theory as et

    return et.log_softmax(logits)


def entropies(logits: FloatArray) -> FloatArray:
    """Entropies of many policies."""
    import entropy_theory as et

    return np.asarray(et.entropy(logits))


def flip_by_bisection(logits: FloatArray, sign: FloatArray, largest: float = 30.0) -> FloatArray:
    """The first step of the first logit, of the given sign, at which the entropy is back; NaN beyond the largest."""
    before = entropies(logits)

    def change(size: FloatArray) -> FloatArray:
        moved = logits.copy()
        moved[..., 0] += sign * size
        return entropies(moved) - before

    # One logit: the rise is an interval that begins at 0 (section B.5), so bisection is enough.
    low, high = np.full(before.shape, 1e-6), np.full(before.shape, largest)
    found = (change(low) > 0) & (change(high) < 0)
    for _ in range(60):
        middle = (low + high) / 2
        rising = change(middle) > 0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    return np.where(found, low, np.nan)


def work(task: PhasePoints) -> dict[str, Any]:
    """Build the policies, take the steps; a row per point."""
    import entropy_theory as et
    from entropy_theory.theory import discriminant

    points = grid(task)
    logits = policies(points, task)
    p, H = points.T
    S = p * (H + np.log(p))
    single, grpo = [], []
    centered = np.asarray(discriminant.centered_discriminant(logits, 0))
    direction = discriminant.grpo_direction(logits, np.zeros(logits.shape[:2], dtype=int))
    entry = np.zeros_like(logits)
    entry[..., 0] = 1.0
    for size in task.sizes:
        for side in (1.0, -1.0):
            true = np.asarray(et.entropy_change(logits, side * size * entry))
            single.append((np.sign(true) == -np.sign(side * S)[:, np.newaxis]).mean(axis=1))
            true = np.asarray(et.entropy_change(logits, side * size * direction))
            grpo.append((np.sign(true) == -np.sign(side * centered)).mean(axis=1))
    sign = np.broadcast_to(-np.sign(S)[:, np.newaxis], logits.shape[:2])
    measured = flip_by_bisection(logits, sign)
    radius = np.asarray(et.sign_flip_radius(p, H))
    both = np.isfinite(measured) & np.isfinite(radius)[:, np.newaxis]
    error = (
        np.abs(measured - np.abs(radius)[:, np.newaxis])[both]
        / np.broadcast_to(np.abs(radius)[:, np.newaxis], both.shape)[both]
    )
    names = [f"{side}{size:g}" for size in task.sizes for side in "+-"]
    return {
        "points": sweep.rounded(points.tolist(), 6),
        "positive_centered": sweep.rounded((centered > 0).mean(axis=1).tolist(), 3),
        "single": {name: sweep.rounded(share.tolist(), 3) for name, share in zip(names, single, strict=True)},
        "grpo": {name: sweep.rounded(share.tolist(), 3) for name, share in zip(names, grpo, strict=True)},
        "flips": int(both.sum()),
        "largest_relative_error_of_flip": float(error.max()),
        "radius": [None if not np.isfinite(r) else float(f"{r:.4g}") for r in radius],
    }


def tasks(config: PhaseConfig) -> list[PhasePoints]:
    """One diagram per seed."""
    return [
        PhasePoints(config.vocab_size, config.probs, config.entropies, config.rests, config.sizes, seed)
        for seed in config.seeds
    ]


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Agreement of the signs by step and by what was predicted; the error of the flip radius."""
    found = [entry["result"] for entry in results]
    points = np.array(found[0]["points"])
    predicted_fall = {side: side * (points[:, 1] + np.log(points[:, 0])) > 0 for side in (1.0, -1.0)}
    agreement: dict[str, Any] = {}
    for name in found[0]["single"]:
        fall = predicted_fall[1.0 if name[0] == "+" else -1.0]
        agreement[name] = {
            "single_falls": sweep.interval([float(np.mean(np.array(entry["single"][name])[fall])) for entry in found]),
            "single_rises": sweep.interval([float(np.mean(np.array(entry["single"][name])[~fall])) for entry in found]),
            "grpo": sweep.interval([float(np.mean(entry["grpo"][name])) for entry in found]),
        }
    return {
        "points": len(points),
        "agreement": agreement,
        "flips": sum(entry["flips"] for entry in found),
        "largest_relative_error_of_flip": max(entry["largest_relative_error_of_flip"] for entry in found),
    }


def main(config: PhaseConfig) -> dict[str, Any] | None:
    """Run, record, print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("sign_phase_diagram", config, tasks(config), work, summarise)
    if record is not None:
        summary = record["summary"]
        print(f"{summary['points']} points; share of policies with the predicted sign, means over seeds")
        print(f"{'step':8}{'one logit, falls':>20}{'one logit, rises':>20}{'GRPO step':>20}")
        for name, row in summary["agreement"].items():
            print(f"{name:8}" + "".join(f"{sweep.shown(found):>20}" for found in row.values()))
        error = summary["largest_relative_error_of_flip"]
        print(f"sign-flip radius: {summary['flips']} policies, largest relative error of the formula {error:.1e}")
    return record


if __name__ == "__main__":
    run_script(main, PhaseConfig)
