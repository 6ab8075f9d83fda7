"""The second order of the change of entropy, along any direction and along that of a GRPO step.

Conventions: logits z ∈ R^V on the last axis, p = softmax(z), L = log p, u = H + L = z − E_p[z], nats, float64. A logit
of −inf is a token of probability 0 and contributes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from entropy_theory.errors import invalid
from entropy_theory.theory import discriminant as _first
from entropy_theory.theory._policy import FloatArray, as_direction, as_real, joint_shape, policy


def entropy_curvature(logits: ArrayLike, direction: ArrayLike) -> FloatArray:
    """Second derivative of the entropy along a direction of the logits.

    Section B.6 of the theory notes.

    Formula: H''(0) = −Σ_i p_i δ_i² (1 + H + L_i) for δz = t d, with δ_i = d_i − E_p[d].

    The direction is measured from its entry at the likeliest token, so that δ keeps its digits on a nearly
    deterministic row.

    Symbols: z is `logits`; d is `direction`; H'' is the result.

    Shapes: (..., V) and (..., V), leading shapes broadcast; (...) out. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; direction finite.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{entropy_curvature([0.0, 0.0], [1.0, 0.0]):.4f}")  # −p (1 − p) at p = ½
        -0.2500
    """
    here = policy(logits)
    moves = as_direction("direction", direction, here.probs.shape)
    shape = np.broadcast_shapes(moves.shape, here.probs.shape)
    anchor = np.broadcast_to(here.gaps.argmax(axis=-1)[..., np.newaxis], (*shape[:-1], 1))
    relative = moves - np.take_along_axis(np.broadcast_to(moves, shape), anchor, axis=-1)
    spread = relative - (here.probs * relative).sum(axis=-1, keepdims=True)
    return (-(here.probs * spread**2 * (1.0 + here.excess)).sum(axis=-1))[()]


def second_order_change(logits: ArrayLike, direction: ArrayLike, step: ArrayLike) -> FloatArray:
    """Second-order change of entropy when the logits move by a step along any direction.

    Section B.6 of the theory notes; Theorems 3.2 and 3.3 of arXiv 2602.03392 with their next term.

    Formula: ΔH ≈ −t Σ_i S_i d_i + ½ t² H''(0), H''(0) = −Σ_i p_i δ_i² (1 + H + L_i), δ_i = d_i − E_p[d].

    Symbols: z is `logits`; d is `direction`; t is `step` (ε for one logit, α = η r A for GRPO).

    Shapes: logits (..., V), direction (..., V), step a number or (...); leading shapes broadcast. Returns (...). Nats,
    float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; direction and step finite. The error is
    O(t³).

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> from entropy_theory import entropy_change, first_order_change
        >>> logits, direction = [1.0, 0.0, -1.0], [1.0, 0.0, 0.0]
        >>> orders = [change(logits, direction, 0.1) for change in (first_order_change, second_order_change)]
        >>> print(f"{orders[0]:.6f} {orders[1]:.6f} {entropy_change(logits, [0.1, 0.0, 0.0]):.6f}")
        -0.028259 -0.028905 -0.028865
    """
    first = _first.first_order_change(logits, direction, step)
    steps = as_real("step", step)
    return (first + 0.5 * steps**2 * entropy_curvature(logits, direction))[()]


def grpo_curvature(logits: ArrayLike, token: ArrayLike) -> FloatArray:
    """Second derivative of the entropy along one GRPO step, summed token by token.

    Section B.7 of the theory notes.

    Formula: H'' = −Σ_i p_i δ_i² (1 + u_i) with δ_i = c − p_i + [i = k], c = M_2 − p_k. At the likeliest token
    δ is built from the other probabilities alone, so peaked rows keep their digits.

    Symbols: z is `logits`; k is `token`; H'' is the result, ΔH = −α S_c + ½ α² H'' + O(α³).

    Shapes: logits (..., V); token an integer or integers (...) that broadcast against the leading shape. Returns (...).
    Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{grpo_curvature([1.0, 0.0, -1.0], token=0):.6f}")
        -0.044215
    """
    return entropy_curvature(logits, _first.grpo_direction(logits, token))


def grpo_curvature_from_sums(
    prob: ArrayLike,
    discriminant: ArrayLike,
    baseline: ArrayLike,
    collision: ArrayLike,
    cube: ArrayLike,
    cubic_baseline: ArrayLike,
) -> FloatArray:
    """Second derivative of the entropy along one GRPO step, from the policy's power sums: O(1) per token.

    Section B.7 of the theory notes.

    Formula: H'' = −{c² − 2c (M_2 + N) + M_3 + N3 + (p_k + S_k)(1 + 2(c − p_k))}, c = M_2 − p_k.

    The sums cancel on peaked rows (relative error 3e-6 at a logit gap of 12): there use `grpo_curvature`.

    Symbols: p_k is `prob`; S_k is `discriminant`; N is `baseline`; M_2 = Σ p² is `collision`; M_3 = Σ p³ is `cube`;
    N3 = Σ p³ (H + L) is `cubic_baseline`.

    Shapes: numbers or arrays that broadcast; the broadcast shape out. Nats, float64.

    Domain: sums of one policy.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(grpo_curvature_from_sums(0.5, 0.0, 0.0, 0.5, 0.25, 0.0))  # (½, ½): −p (1 − p)
        -0.25
    """
    values = {
        "prob": prob,
        "discriminant": discriminant,
        "baseline": baseline,
        "collision": collision,
        "cube": cube,
        "cubic_baseline": cubic_baseline,
    }
    p, S, N, M2, M3, N3 = (_finite(name, value) for name, value in values.items())
    c = M2 - p
    return (-(c**2 - 2.0 * c * (M2 + N) + M3 + N3 + (p + S) * (1.0 + 2.0 * (c - p))))[()]


def mean_grpo_curvature(logits: ArrayLike) -> FloatArray:
    """Mean over the policy's own tokens of the second derivative of the entropy along a GRPO step.

    Section B.10 of the theory notes.

    Formula: E_k[H''_k] = 2M_3 + 3N3 − M_2 − M_2² − N (1 + 2M_2) = −Σ_i p_i (1 + u_i) E_k[δ_i²].

    Computed in the second form, with E_k[δ_i²] = Var_p(p) + p_i (1 − p_i) + 2 p_i (M_2 − p_i), and for the likeliest
    token token by token: on a peaked row the first form and its E_k[δ²] cancel to the third order of 1 − p_max.

    Symbols: z is `logits`; the mean is the result.

    Shapes: (..., V) in, (...) out. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row. −(1/V)(1 − 1/V) when uniform.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{mean_grpo_curvature([0.0, 0.0]):.4f} {mean_grpo_curvature(np.log([0.9, 0.1])):+.5f}")
        -0.2500 +0.02455
    """
    here = policy(logits)
    p = here.probs
    top = (np.arange(p.shape[-1]) == here.gaps.argmax(axis=-1)[..., np.newaxis]) & (p > 0.0)
    p_top = 1.0 / here.total
    others = (here.count - 1.0 + here.rest) / here.total  # 1 − p_top
    collision_rest = np.where(top, 0.0, p**2).sum(axis=-1, keepdims=True)
    collision = p_top**2 + collision_rest
    gap = collision_rest - p_top * others  # M_2 − p_top
    variance = p_top * gap**2 + np.where(top, 0.0, p * (p - collision) ** 2).sum(axis=-1, keepdims=True)
    spread = variance + p * (1.0 - p) + 2.0 * p * (collision - p)
    # δ of the likeliest token, when it is itself sampled and when another is.
    at_top = p_top * (others**2 + collision_rest) ** 2
    at_top = at_top + np.where(top, 0.0, p * (gap - p) ** 2).sum(axis=-1, keepdims=True)
    spread = np.where(top, at_top, spread)
    return (-(p * (1.0 + here.excess) * spread).sum(axis=-1))[()]


def noise_drift(logits: ArrayLike, mean_square_step: ArrayLike) -> FloatArray:
    """Expected change of entropy under advantages that know nothing about the sampled token.

    Section B.10 of the theory notes.

    Formula: E[ΔH] ≈ ½ E[α²] E_k[H''_k], k ~ p; the first order vanishes (Corollary 3.4).

    Symbols: z is `logits`; E[α²] is `mean_square_step`; the drift is the result.

    Shapes: logits (..., V), mean_square_step a number or (...); leading shapes broadcast. Returns (...). Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; E[α²] ≥ 0 and small; E[α] = 0, α independent
    of k.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{noise_drift([0.0, 0.0], 0.01):.5f}")
        -0.00125
    """
    curvature = mean_grpo_curvature(logits)
    squares = _finite("mean_square_step", mean_square_step)
    if (squares < 0.0).any():
        raise invalid("mean_square_step", "values >= 0", squares[squares < 0.0].flat[0])
    joint_shape("mean_square_step", squares.shape, np.shape(curvature))
    return (0.5 * squares * curvature)[()]


def _finite(name: str, value: ArrayLike) -> FloatArray:
    array = as_real(name, value)
    if not np.isfinite(array).all():
        raise invalid(name, "finite values", "NaN or an infinity")
    return array
