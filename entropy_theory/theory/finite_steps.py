"""Steps of any size: a bound for every GRPO step, and directions that move a whole set of tokens alike.

Conventions: logits z ∈ R^V on the last axis, p = softmax(z), nats, float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from entropy_theory.errors import invalid
from entropy_theory.theory import discriminant as _first
from entropy_theory.theory._policy import FloatArray, as_real, as_tokens, at_token, joint_shape, policy
from entropy_theory.theory.categorical import compare, relative_move
from entropy_theory.theory.single_logit import binary_entropy, compare_one


def step_bound(logits: ArrayLike, token: ArrayLike, alpha: ArrayLike) -> FloatArray:
    """Upper bound of the change of entropy under one GRPO step, for every step size of either sign.

    T1 in part D of the theory notes.

    Formula: ΔH ≤ −S_c (q_k − p_k)/D₀ − KL(q‖p), q ∝ p e^{α (e_k − p)}, D₀ = p_k [(1 − p_k)² + Σ_{i≠k} p_i²].

    Where α S_c ≥ 0 both terms are falls: the one-sided sign theorem. Where a rise is predicted, this is a ceiling for
    it. The probability p_k cancels: (q_k − p_k)/p_k = e^{r_k} − 1 with r_k = log(q_k/p_k).

    Symbols: z is `logits`; k is `token`; α is `alpha`; the bound is the result.

    Shapes: logits (..., V); token and alpha numbers or (...); leading shapes broadcast. Returns (...). Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; α finite. +inf where the bound of a predicted
    rise exceeds the float64 range. Round-off is 1e-13 of the two terms, which cancel where a predicted rise has failed.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> from entropy_theory import entropy_change, grpo_direction
        >>> logits = np.log([0.1, 0.2, 0.7])  # reinforce the unlikely first token: a predicted rise
        >>> for alpha in (0.5, 5.0):
        ...     change = entropy_change(logits, alpha * grpo_direction(logits, 0))
        ...     print(f"{change:+.4f} <= {step_bound(logits, 0, alpha):+.4f}")
        +0.1544 <= +0.1720
        -0.7384 <= -0.0988
    """
    here = policy(logits)
    tokens = as_tokens(token, here.probs.shape)
    steps = as_real("alpha", alpha)
    if not np.isfinite(steps).all():
        raise invalid("alpha", "finite values", "NaN or an infinity")
    joint_shape("alpha", steps.shape, np.broadcast_shapes(tokens.shape, here.probs.shape[:-1]))
    direction = _first.grpo_direction(logits, tokens)
    move = relative_move(here, "alpha", steps[..., np.newaxis] * direction)
    with np.errstate(over="ignore", invalid="ignore"):
        to = compare(here, move)
        gain = np.expm1(at_token(to.log_ratio, tokens))
    named = np.arange(here.probs.shape[-1]) == tokens[..., np.newaxis]
    others = np.where(named, 0.0, here.probs**2).sum(axis=-1)
    complement = at_token(direction, tokens)
    score = np.asarray(_first.centered_discriminant(logits, tokens))
    inner = (complement > 0.0) & (score != 0.0)
    safe = np.where(inner, complement, 1.0)  # S_c and D₀ are both of the order of its square on a peaked row
    with np.errstate(over="ignore", invalid="ignore"):
        linear = np.where(inner, -(score / safe) * gain / (safe + others / safe), 0.0)
    return (linear - to.divergence.sum(axis=-1))[()]


def two_valued_entropy_change(
    mass: ArrayLike, inside_entropy: ArrayLike, outside_entropy: ArrayLike, step: ArrayLike
) -> FloatArray:
    """Exact change of entropy when the logits of a set of tokens move alike, however far.

    T4 in part D of the theory notes; section B.4 is a set of one token.

    Formula: ΔH = −(Q − P) x − KL, x = logit P + H_W − H_K, Q = P e^ε/D, KL = ε Q − log D, D = 1 + P (e^ε − 1).

    Symbols: P is `mass`, the probability of the set K; H_K is `inside_entropy`, that of the policy given a token of K;
    H_W is `outside_entropy`, given any other; ε is `step`; ΔH is the result.

    Shapes: (...) each, broadcast; (...) out. Nats, float64.

    Domain: 0 < P < 1; entropies finite and ≥ 0; ε finite.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{two_valued_entropy_change(0.25, 0.7, 1.2, 1.0):+.4f}")
        +0.0169
    """
    P, inside, outside, steps = _joint(
        mass=_between("mass", mass, open_ends=True),
        inside_entropy=_entropy("inside_entropy", inside_entropy),
        outside_entropy=_entropy("outside_entropy", outside_entropy),
        step=_finite("step", step),
    )
    difference, divergence, _, _ = compare_one(P, steps)
    tilt = np.log(P) - np.log1p(-P) + (outside - inside)
    return (-difference * tilt - divergence)[()]


def pass_rate_entropy(pass_rate: ArrayLike, right_entropy: ArrayLike, wrong_entropy: ArrayLike) -> FloatArray:
    """Entropy of a policy that is sharpened on right answers, at each pass rate that it reaches.

    T4 in part D of the theory notes: the optimum π ∝ π₀ e^{R/β} of KL-regularised reinforcement learning with a 0/1
    reward keeps the policy given right answers, and given wrong ones.

    Formula: H = h(Q) + Q H_right + (1 − Q) H_wrong, rising in Q exactly while Q < σ(H_right − H_wrong).

    Symbols: Q is `pass_rate`; H_right and H_wrong are the entropies of the starting policy given a right and a wrong
    answer, `right_entropy` and `wrong_entropy`; H is the result, the entropy of the whole sequence.

    Shapes: (...) each, broadcast; (...) out. Nats, float64.

    Domain: 0 ≤ Q ≤ 1; entropies finite and ≥ 0.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(np.round(pass_rate_entropy([0.1, 0.5, 1.0], 2.0, 1.0), 4))
        [1.4251 2.1931 2.    ]
    """
    Q, right, wrong = _joint(
        pass_rate=_between("pass_rate", pass_rate, open_ends=False),
        right_entropy=_entropy("right_entropy", right_entropy),
        wrong_entropy=_entropy("wrong_entropy", wrong_entropy),
    )
    return (binary_entropy(Q, 1.0 - Q) + Q * right + (1.0 - Q) * wrong)[()]


def _joint(**values: FloatArray) -> list[FloatArray]:
    """Broadcast arguments against each other, or name the first that does not fit those before it."""
    shape: tuple[int, ...] = ()
    for name, value in values.items():
        shape = joint_shape(name, value.shape, shape)
    return [np.broadcast_to(value, shape) for value in values.values()]


def _between(name: str, value: ArrayLike, open_ends: bool) -> FloatArray:
    values = as_real(name, value)
    inside = (values > 0.0) & (values < 1.0) if open_ends else (values >= 0.0) & (values <= 1.0)
    if not inside.all():
        expected = "values between 0 and 1" + (", both left out" if open_ends else "")
        raise invalid(name, expected, values[~inside].flat[0])
    return values


def _entropy(name: str, value: ArrayLike) -> FloatArray:
    values = as_real(name, value)
    inside = (values >= 0.0) & np.isfinite(values)
    if not inside.all():
        raise invalid(name, "finite values >= 0", values[~inside].flat[0])
    return values


def _finite(name: str, value: ArrayLike) -> FloatArray:
    values = as_real(name, value)
    if not np.isfinite(values).all():
        raise invalid(name, "finite values", "NaN or an infinity")
    return values
