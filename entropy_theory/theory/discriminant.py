"""The discriminant S, its baseline N, the centred discriminant S_c, and the first-order change of entropy.

In logits the normaliser cancels, H + log p_i = z_i − E_p[z] = u_i, so S_i = p_i u_i is computed from u alone and stays
exact where H and log p_i would cancel. Conventions: logits z ∈ R^V on the last axis, p = softmax(z), nats, float64. A
logit of −inf is a token of probability 0; it contributes 0 everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from entropy_theory.errors import invalid
from entropy_theory.theory._policy import (
    FloatArray,
    Policy,
    as_direction,
    as_real,
    as_tokens,
    at_token,
    joint_shape,
    policy,
)


def discriminant(logits: ArrayLike, token: ArrayLike | None = None) -> FloatArray:
    """Discriminant of every token, or of one: minus the slope of the entropy in that token's logit.

    Theorem 3.2 of arXiv 2602.03392; section B.1 of the theory notes.

    Formula: S_i = p_i (H + log p_i) = p_i (z_i − E_p[z]) = −∂H/∂z_i.

    Symbols: z is `logits`; i is `token`, or every token; S is the result.

    Shapes: logits (..., V); token an integer or integers (...) that broadcast against the leading shape. Returns
    (..., V) without a token and (...) with one. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row. Σ_i S_i = 0; S_i ≥ −e^{−(1+H)}; S_i has the
    sign of p_i − e^{−H}.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> discriminant([1.0, 0.0, -1.0])
        array([ 0.28258745, -0.14077036, -0.14181709])
        >>> print(f"{discriminant([1.0, 0.0, -1.0], token=0):.6f}")
        0.282587
    """
    here = policy(logits)
    return _pick(_discriminant(here), token)


def baseline(logits: ArrayLike) -> FloatArray:
    """Policy-weighted mean of the discriminant, which a GRPO step subtracts.

    Theorem 3.3 of arXiv 2602.03392; section B.14 of the theory notes.

    Formula: N = E_{i~p}[S_i] = Σ_i p_i² (H + log p_i) = Cov_p(p, log p).

    Computed as p_max Σ p_i (e^{d_i} − 1) u_i, d = z − max z: the likeliest tokens drop out exactly, and a nearly
    uniform policy keeps its digits.

    Symbols: z is `logits`; N is the result.

    Shapes: (..., V) in, (...) out. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row. N ≥ 0, zero where p is uniform on its support.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{baseline([1.0, 0.0, -1.0]):.6f}")
        0.140770
    """
    return _baseline(policy(logits))[..., 0][()]


def centered_discriminant(logits: ArrayLike, token: ArrayLike | None = None) -> FloatArray:
    """Discriminant of every token, or of one, above the policy's own mean: what a GRPO step acts through.

    Theorem 3.3 of arXiv 2602.03392.

    Formula: S_c,i = S_i − N.

    For the likeliest tokens S − N cancels as the policy becomes deterministic (terms of order ε = 1 − p_max, answer of
    order ε²). They are computed as S_i Z_rest/Z − R, with Z_rest/Z the probability and R the share of N of all other
    tokens.

    Symbols: z is `logits`; i is `token`, or every token; S_c is the result.

    Shapes: logits (..., V); token an integer or integers (...) that broadcast against the leading shape. Returns
    (..., V) without a token and (...) with one. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row. E_{i~p}[S_c,i] = 0.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> centered_discriminant([1.0, 0.0, -1.0])
        array([ 0.14181709, -0.28154071, -0.28258745])
        >>> print(f"{centered_discriminant([0.0, -30.0], token=0):.6e}")
        5.253906e-25
    """
    here = policy(logits)
    scores = _discriminant(here)
    others = np.where(here.maxima, 0.0, here.probs * scores).sum(axis=-1, keepdims=True)
    at_maxima = scores * (here.rest / here.total) - others
    return _pick(np.where(here.maxima, at_maxima, scores - _baseline(here)), token)


def grpo_direction(logits: ArrayLike, token: ArrayLike) -> FloatArray:
    """Direction in which one policy-gradient step on a sampled token moves the logits.

    Theorem 3.3 of arXiv 2602.03392.

    Formula: d = e_k − p = ∇_z log p_k; the step is δz = α d with α = η r A.

    The entry 1 − p_k is the sum of the other probabilities, so it keeps its digits when the token is nearly certain.

    Symbols: z is `logits`; k is `token`; d is the result.

    Shapes: logits (..., V); token an integer or integers (...) that broadcast against the leading shape. Returns
    (..., V). No unit, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row. The entries sum to 0.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> grpo_direction([0.0, 0.0, 0.0, 0.0], token=1)
        array([-0.25,  0.75, -0.25, -0.25])
    """
    here = policy(logits)
    tokens = as_tokens(token, here.probs.shape)
    leading = np.broadcast_shapes(tokens.shape, here.probs.shape[:-1])
    complement = np.where(here.maxima, (here.count - 1.0 + here.rest) / here.total, 1.0 - here.probs)
    direction = np.broadcast_to(0.0 - here.probs, (*leading, here.probs.shape[-1])).copy()
    index = np.broadcast_to(tokens, leading)[..., np.newaxis]
    np.put_along_axis(direction, index, at_token(complement, tokens)[..., np.newaxis], axis=-1)
    return direction


def first_order_change(logits: ArrayLike, direction: ArrayLike, step: ArrayLike) -> FloatArray:
    """First-order change of entropy when the logits move by a step along any direction.

    Theorems 3.2 and 3.3 of arXiv 2602.03392; section B.1 of the theory notes.

    Formula: ΔH ≈ −t Σ_i S_i d_i for δz = t d. For d = e_k it is −t S_k; for d = e_k − p it is −t (S_k − N).

    The direction is measured from its entry at the likeliest token, which changes nothing because Σ S_i = 0.

    Symbols: z is `logits`; d is `direction`; t is `step` (ε for one logit, α = η r A for GRPO).

    Shapes: logits (..., V), direction (..., V), step a number or (...); leading shapes broadcast. Returns (...). Nats,
    float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; direction and step finite. The error is
    O(t²).

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> logits = [1.0, 0.0, -1.0]
        >>> print(f"{first_order_change(logits, grpo_direction(logits, token=0), step=0.1):.6f}")
        -0.014182
    """
    here = policy(logits)
    moves = as_direction("direction", direction, here.probs.shape)
    steps = as_real("step", step)
    if not np.isfinite(steps).all():
        raise invalid("step", "finite values", "NaN or an infinity")
    shape = np.broadcast_shapes(moves.shape, here.probs.shape)
    joint_shape("step", steps.shape, shape[:-1])
    anchor = np.broadcast_to(here.gaps.argmax(axis=-1)[..., np.newaxis], (*shape[:-1], 1))
    relative = moves - np.take_along_axis(np.broadcast_to(moves, shape), anchor, axis=-1)
    return (-steps * (_discriminant(here) * relative).sum(axis=-1))[()]


def _discriminant(here: Policy) -> FloatArray:
    return here.probs * here.excess + 0.0  # + 0.0 turns −0.0 into 0.0


def _baseline(here: Policy) -> FloatArray:
    """N with its last axis kept, for broadcasting against (..., V)."""
    spread = (here.probs * np.expm1(here.gaps) * here.excess).sum(axis=-1, keepdims=True)
    return spread / here.total + 0.0


def _pick(values: FloatArray, token: ArrayLike | None) -> FloatArray:
    if token is None:
        return values
    return at_token(values, as_tokens(token, values.shape))[()]
