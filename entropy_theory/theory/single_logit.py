"""One moved logit, exactly: two numbers, the token's probability and the policy's entropy, decide everything.

With p the token's probability, H_rest = (H − h(p))/(1 − p) the entropy of the policy given any other token (h: binary
entropy), and x = logit p + H_rest = (H + log p)/(1 − p), the discriminant is S = p (1 − p) x. Nats, float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy_theory.errors import invalid
from entropy_theory.theory._extended import log_plus
from entropy_theory.theory._policy import FloatArray, as_real
from entropy_theory.theory.categorical import SERIES_RADIUS, phi_series

# A pair (p, H) read from float32 statistics may sit this far below h(p) without being wrong.
_SLACK = 1e-6
LARGEST_ENTROPY = 709.0  # log V of a vocabulary whose size is the largest float64: no token's policy has more
_LARGEST_STEP = 1500.0  # e^{−1500} is 0 beside any float64 probability: a root beyond is one at infinity
# Below it the first term left out of the asymptote, of relative size x², is under float64's digits.
_ASYMPTOTE = 1e-8


def rest_entropy(prob: ArrayLike, entropy: ArrayLike) -> FloatArray:
    """Entropy of the policy given that the token is not the one in question.

    Section B.2 of the theory notes.

    Formula: H_rest = (H − h(p)) / (1 − p), h(p) = −p log p − (1 − p) log(1 − p).

    Symbols: p is `prob`; H is `entropy`; H_rest is the result.

    Shapes: (...) and (...), broadcast; (...) out. Nats, float64.

    Domain: 0 ≤ p ≤ 1, h(p) ≤ H ≤ 709 (log V of the largest V that float64 holds). 0 ≤ H_rest ≤ log(V − 1); 0 by
    convention at p = 1.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{rest_entropy(0.5, 1.5 * np.log(2.0)):.6f}")  # (½, ¼, ¼): two equal others
        0.693147
    """
    p, H = _policy_of_token(prob, entropy)
    return _rest_entropy(p, H)[()]


def single_logit_entropy_change(prob: ArrayLike, entropy: ArrayLike, step: ArrayLike) -> FloatArray:
    """Exact change of entropy when one logit moves, however far, from the token's probability and the entropy alone.

    Section B.4 of the theory notes; Theorem 3.2 of arXiv 2602.03392 at any step.

    Formula: ΔH = −(u/D) S − KL with u = e^ε − 1, D = 1 + p u, q = p e^ε/D, S = p (H + log p), KL = ε q − log D ≥ 0.
    Equally ΔH = h(q) − h(p) − (q − p) H_rest.

    KL is the sum p φ(r_k) + (1 − p) φ(r), with r_k = log(q/p), r = log((1 − q)/(1 − p)), φ(r) = r eʳ − eʳ + 1 ≥ 0 by
    its own series, and H + log p is summed in extended precision; so a step of 1e-8 keeps its digits, also where
    H + log p is the rounding of a zero. Each entry takes the form with the smaller terms.

    Symbols: p is `prob`; H is `entropy`; ε is `step`; ΔH is the result.

    Shapes: (...) each, broadcast; (...) out. Nats, float64. p and H are taken as the exact numbers they are.

    Domain: 0 ≤ p ≤ 1, h(p) ≤ H ≤ 709, ε finite. Nearer to p = 1 than 1e-12 the rounded p and H no longer say what
    surrounds the token; use `entropy_change` there.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{single_logit_entropy_change(0.1, 2.0, 0.3):+.6f}")  # p < e^{−H}: a rise
        +0.005489
        >>> print(f"{single_logit_entropy_change(0.1, 2.0, -1.0):+.6f}")  # a predicted fall
        -0.046446
    """
    p, H = _policy_of_token(prob, entropy)
    steps = as_real("step", step)
    if not np.isfinite(steps).all():
        raise invalid("step", "finite values", "NaN or an infinity")
    try:
        p, H, steps = np.broadcast_arrays(p, H, steps)
    except ValueError:
        raise invalid("step", f"a shape that broadcasts with {p.shape}", f"{steps.shape}") from None
    inner = (p > 0.0) & (p < 1.0)
    p = np.where(inner, p, 0.5)
    change = _change(H, _tilt(p, H), _rest_entropy(p, H), compare_one(p, steps))
    return np.where(inner, change, 0.0)[()]


def sign_flip_radius(prob: ArrayLike, entropy: ArrayLike) -> FloatArray:
    """Step of one logit at which the entropy is back where it was: up to it a predicted rise is a rise, beyond a fall.

    Section B.5 of the theory notes.

    Formula: the root ε* ≠ 0 of ΔH(ε) = 0, that is of KL(ε)/(q − p) = −x, whose left side increases in ε. As S → 0,
    ε* = −2x − (2/3) tanh(H_rest/2) x² + O(x³).

    Its sign is that of the rising side, −sign S. S < 0: |x| < ε* ≤ 2|x|, and ΔH > 0 exactly on (0, ε*). S > 0:
    ΔH > 0 exactly on (ε*, 0), with |ε*| ≥ 2x. Conventions: −inf where no step flips the sign (S > 0 and
    h(p) ≤ p H, when every ε < 0 raises H); 0 where S = 0 (every step lowers H).

    Symbols: p is `prob`; H is `entropy`; ε* is the result; x = (H + log p)/(1 − p).

    Shapes: (...) and (...), broadcast; (...) out. A logit has no unit; float64. Solved by Newton's method kept inside
    a bracket.

    Domain: 0 < p < 1, h(p) ≤ H ≤ 709.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> radius = sign_flip_radius([0.1, 0.4, 0.9], [2.0, 1.0, 1.0])
        >>> print(np.round(radius, 6))
        [ 0.624904 -0.282573      -inf]
    """
    p, H = _policy_of_token(prob, entropy)
    if ((p <= 0.0) | (p >= 1.0)).any():
        raise invalid("prob", "values with 0 < p < 1", p[(p <= 0.0) | (p >= 1.0)].flat[0])
    p, H = np.broadcast_arrays(p, H)
    x = _tilt(p, H)
    rest = _rest_entropy(p, H)
    asymptote = -2.0 * x - (2.0 / 3.0) * np.tanh(0.5 * rest) * x**2
    small = np.abs(x) < _ASYMPTOTE
    # K(ε) = KL/(q − p) tends to log(1 − p)/p as ε → −∞: where −x lies beyond, there is no root.
    none = x >= -np.log1p(-p) / p

    near = np.abs(x)
    far = 2.0 * near
    sign = -np.sign(x)
    for _ in range(60):  # S > 0: the bracket starts at 2x and has no bound but the largest step
        short = (x > 0.0) & ~none & (_ratio(p, sign * far) + x > 0.0) & (far < _LARGEST_STEP)
        if not short.any():
            break
        near, far = np.where(short, far, near), np.where(short, 2.0 * far, far)
    none |= (x > 0.0) & (far >= _LARGEST_STEP)
    root = _solve(p, H, sign, near, far, ~(small | none))
    return np.where(small, asymptote, np.where(none, -np.inf, root))[()]


def discriminant_bounds(prob: ArrayLike, vocab_size: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Least and greatest discriminant that a token of given probability can have.

    Section B.2 of the theory notes.

    Formula: p (1 − p) logit p ≤ S ≤ p (1 − p) (logit p + log(V − 1)).

    The lower end is met when all other probability sits on one token (at V > 2 it is only approached), the upper when
    it is spread evenly.

    Symbols: p is `prob`; V is `vocab_size`; the result is the pair of bounds.

    Shapes: (...) and (...), broadcast; (...) out, twice. Nats, float64.

    Domain: 0 ≤ p ≤ 1, V ≥ 2.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> low, high = discriminant_bounds(0.1, 50_000)
        >>> print(f"{low:.4f} {high:.4f}")
        -0.1978 0.7760
    """
    p = _probability(prob)
    sizes = np.asarray(vocab_size)
    if sizes.dtype.kind not in "iu":
        raise invalid("vocab_size", "integers", f"dtype {sizes.dtype}")
    if (sizes < 2).any():
        raise invalid("vocab_size", "at least 2", sizes[sizes < 2].flat[0])
    try:
        p, sizes = np.broadcast_arrays(p, sizes)
    except ValueError:
        raise invalid("vocab_size", f"a shape that broadcasts with {p.shape}", f"{sizes.shape}") from None
    inner = (p > 0.0) & (p < 1.0)
    p = np.where(inner, p, 0.5)
    # 2 atanh(2p − 1) near ½, where the two logarithms would cancel.
    centre = np.clip(2.0 * p - 1.0, -0.5, 0.5)
    logit = np.where(np.abs(2.0 * p - 1.0) < 0.5, 2.0 * np.arctanh(centre), np.log(p) - np.log1p(-p))
    weight = np.where(inner, p * (1.0 - p), 0.0)
    low = weight * logit
    return low[()], (low + weight * np.log(sizes - 1.0))[()]


def _probability(prob: ArrayLike) -> FloatArray:
    p = as_real("prob", prob)
    outside = ~((p >= 0.0) & (p <= 1.0))  # also NaN
    if outside.any():
        raise invalid("prob", "values with 0 <= p <= 1", p[outside].flat[0])
    return p


def _policy_of_token(prob: ArrayLike, entropy: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Check that some policy has this probability and this entropy."""
    p, H = _probability(prob), as_real("entropy", entropy)
    outside = ~((H >= 0.0) & (H <= LARGEST_ENTROPY))  # also NaN
    if outside.any():
        raise invalid("entropy", f"values with 0 <= H <= {LARGEST_ENTROPY:g}", H[outside].flat[0])
    try:
        p, H = np.broadcast_arrays(p, H)
    except ValueError:
        raise invalid("entropy", f"a shape that broadcasts with {p.shape}", f"{H.shape}") from None
    binary = binary_entropy(p, 1.0 - p)
    least = binary * (1.0 - _SLACK)
    below = (least > H) | ((p == 1.0) & (H > _SLACK))
    if below.any():
        expected = "at least the binary entropy of prob, and 0 at prob = 1"
        raise invalid("entropy", expected, f"{H[below].flat[0]} at prob {p[below].flat[0]}")
    return p, H


def _tilt(p: FloatArray, H: FloatArray) -> FloatArray:
    """Return x = (H + log p)/(1 − p) = logit p + H_rest."""
    return log_plus(p, H) / (1.0 - p)


def _rest_entropy(p: FloatArray, H: FloatArray) -> FloatArray:
    complement = 1.0 - p
    rest = np.maximum(H - binary_entropy(p, complement), 0.0)
    return np.where(complement > 0.0, rest / np.where(complement > 0.0, complement, 1.0), 0.0)


def binary_entropy(p: FloatArray, complement: FloatArray) -> FloatArray:
    """h(p) from p and 1 − p, so that neither end loses digits; 0 at both ends."""
    inner = (p > 0.0) & (complement > 0.0)
    p, other = np.where(inner, p, 0.5), np.where(inner, complement, 0.5)
    log_p = np.where(p < 0.5, np.log(p), np.log1p(-np.minimum(other, 0.5)))
    log_other = np.where(p < 0.5, np.log1p(-np.minimum(p, 0.5)), np.log(other))
    return np.where(inner, -p * log_p - other * log_other, 0.0)


Compared = tuple[FloatArray, FloatArray, FloatArray, FloatArray]


def _change(H: FloatArray, x: FloatArray, rest: FloatArray, moved: Compared) -> FloatArray:
    """ΔH by the exact law or as the entropy of the moved policy minus H, whichever has the smaller terms."""
    difference, divergence, q, q_rest = moved
    linear = difference * x
    after = binary_entropy(q, q_rest) + q_rest * rest
    return np.where(np.abs(linear) + divergence <= H + after, -linear - divergence, after - H)


def compare_one(p: FloatArray, step: FloatArray) -> Compared:
    """Return q − p, KL(q‖p), q and 1 − q for a token of probability p whose logit moves, each to its own digits."""
    rest = 1.0 - p
    growth, decay = np.exp(np.minimum(step, 0.0)), np.exp(-np.maximum(step, 0.0))
    mixture = p * growth + rest * decay  # D e^{−max(ε, 0)}
    q, q_rest = p * growth / mixture, rest * decay / mixture
    odds = np.log(p) - np.log1p(-p) + step  # for steps that leave the float64 range
    beyond = np.abs(step) > 600.0
    q = np.where(beyond, np.exp(-np.logaddexp(0.0, -odds)), q)
    q_rest = np.where(beyond, np.exp(-np.logaddexp(0.0, odds)), q_rest)
    difference = p * rest * np.where(step >= 0.0, -np.expm1(-np.abs(step)), np.expm1(-np.abs(step))) / mixture
    ratio, ratio_rest = -_log_mixture(rest, p, -step), -_log_mixture(p, rest, step)
    divergence = _divergence(p, q, ratio, difference) + _divergence(rest, q_rest, ratio_rest, -difference)
    return difference, divergence, q, q_rest


def _log_mixture(weight: FloatArray, other: FloatArray, step: FloatArray) -> FloatArray:
    """Return log(1 − a + a e^t) for a weight a and its complement, without cancellation at either end."""
    with np.errstate(over="ignore"):
        shift = weight * np.expm1(step)
    near = np.log1p(np.maximum(shift, -0.5))
    top = np.maximum(step, 0.0)
    far = top + np.log(other * np.exp(-top) + weight * np.exp(step - top))
    return np.where((shift >= -0.5) & np.isfinite(shift), near, far)


def _divergence(p: FloatArray, q: FloatArray, ratio: FloatArray, difference: FloatArray) -> FloatArray:
    """One token's share p φ(r) of KL(q‖p), r = log(q/p)."""
    return np.where(np.abs(ratio) <= SERIES_RADIUS, p * phi_series(ratio), q * ratio - difference)


def _ratio(p: FloatArray, step: FloatArray) -> FloatArray:
    """K(ε) = KL/(q − p), which increases from log(1 − p)/p to −log p/(1 − p) and is ε/2 near 0."""
    difference, divergence, _, _ = compare_one(p, step)
    safe = np.where(difference == 0.0, 1.0, difference)
    return np.where(difference == 0.0, 0.5 * step, divergence / safe)


def _solve(
    p: FloatArray, H: FloatArray, sign: FloatArray, near: FloatArray, far: FloatArray, wanted: NDArray[np.bool_]
) -> FloatArray:
    """Root of ΔH/(q − p) between sign·near and sign·far, by Newton's method with K' = q (1 − q)(ε − K)/(q − p)."""
    x, rest = _tilt(p, H), _rest_entropy(p, H)
    size = np.where(wanted, far, 1.0)
    near, far = np.where(wanted, near, 0.5), np.where(wanted, far, 2.0)
    for _ in range(100):
        step = sign * size
        moved = compare_one(p, step)
        difference, divergence, q, q_rest = moved
        safe = np.where(difference == 0.0, 1.0, difference)
        excess = -_change(H, x, rest, moved) / np.abs(safe)  # increases with the size of the step
        near, far = np.where(excess < 0.0, size, near), np.where(excess >= 0.0, size, far)
        slope = q * q_rest * (step - divergence / safe) / safe
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = size - excess / slope
        inside = (newton > near) & (newton < far)
        following = np.where(inside, newton, 0.5 * (near + far))
        converged = np.abs(following - size) <= 4e-16 * size
        size = np.where(converged, size, following)
        if (converged | ~wanted).all():
            break
    return sign * size
