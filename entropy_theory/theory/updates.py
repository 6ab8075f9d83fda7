"""First-order change of entropy under whole updates, and the boundary of the quadrants.

The expected policy gradient, an entropy bonus, a temperature, a trained output matrix. SciPy loads when
`baseline_boundary` is first called.

Conventions: logits z ∈ R^V on the last axis, p = softmax(z), S the discriminant, N its policy mean, nats, float64.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
from numpy.typing import ArrayLike

from entropy_theory.errors import invalid
from entropy_theory.theory import categorical as _categorical
from entropy_theory.theory import discriminant as _first
from entropy_theory.theory._policy import FloatArray, as_direction, as_logits, as_real, as_tokens, at_token, joint_shape


def expected_change(logits: ArrayLike, advantages: ArrayLike, step: ArrayLike) -> FloatArray:
    """First-order change of entropy under the expected policy gradient.

    Section B.9 of the theory notes.

    Formula: ΔH ≈ −η Cov_p(A, S), for δz = η Σ_k p_k A_k (e_k − p), since E_{k~p}[A_k S_c,k] = Cov_p(A, S).

    Symbols: z is `logits`; A, one advantage per token, is `advantages`; η is `step`.

    Shapes: logits (..., V), advantages (..., V), step a number or (...); leading shapes broadcast. Returns (...). Nats,
    float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; advantages and step finite. The error is
    O(η²).

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{expected_change([1.0, 0.0], [1.0, -1.0], 0.1):.6f}")  # the likelier token is the better one
        -0.015463
    """
    z = as_logits(logits)
    values = as_direction("advantages", advantages, z.shape)
    steps = _steps(step, np.broadcast_shapes(z.shape, values.shape)[:-1])
    probs = np.exp(_categorical.log_softmax(z))
    # Measured from the likeliest token, so that A − E A keeps its digits there on a nearly deterministic row.
    shape = np.broadcast_shapes(z.shape, values.shape)
    top = np.broadcast_to(z.argmax(axis=-1)[..., np.newaxis], (*shape[:-1], 1))
    relative = values - np.take_along_axis(np.broadcast_to(values, shape), top, axis=-1)
    mean = (probs * relative).sum(axis=-1, keepdims=True)
    covariance = (probs * (relative - mean) * _first.discriminant(z)).sum(axis=-1)
    return (-steps * covariance)[()]


def entropy_bonus_change(logits: ArrayLike, coefficient: ArrayLike) -> FloatArray:
    """First-order change of entropy under an entropy bonus.

    Section B.11 of the theory notes.

    Formula: δz = β ∇_z H = −β S ⇒ ΔH ≈ β Σ_i S_i² ≥ 0.

    Symbols: z is `logits`; β is `coefficient`, the step size times the bonus coefficient.

    Shapes: logits (..., V), coefficient a number or (...); leading shapes broadcast. Returns (...). Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; β finite and small. The error is O(β²).

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{entropy_bonus_change([1.0, 0.0, -1.0], 0.1):.6f}")
        0.011978
    """
    scores = _first.discriminant(logits)
    return (_steps(coefficient, scores.shape[:-1], "coefficient") * (scores**2).sum(axis=-1))[()]


def temperature_change(
    logits: ArrayLike,
    token: ArrayLike,
    step: ArrayLike,
    temperature: ArrayLike,
    loss_temperature: ArrayLike | None = None,
) -> FloatArray:
    """First-order change of the entropy at a temperature under one GRPO step whose loss has a temperature of its own.

    Section B.12 of the theory notes.

    Formula: ΔH_T ≈ −(α/(T T_L)) [S_k(π_T) − Σ_i π_{T_L,i} S_i(π_T)], π_T = softmax(z/T). With T_L = T it is
    −(α/T²) S_c(π_T); with T_L = 1, −(α/T) [S_k(π_T) − Σ p_i S_i(π_T)].

    Symbols: z is `logits`; k is `token`; α is `step`; T is `temperature`, that of the entropy; T_L is
    `loss_temperature`, T when None.

    Shapes: logits (..., V), the others numbers or (...); leading shapes broadcast. Returns (...). Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; temperatures finite and > 0. The error is
    O(α²).

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(f"{temperature_change([1.0, 0.0, -1.0], 0, 0.1, temperature=2.0):.6f}")
        -0.003075
    """
    z = as_logits(logits)
    tokens = as_tokens(token, z.shape)
    measured = _temperature("temperature", temperature, z.shape[:-1])
    trained = measured if loss_temperature is None else _temperature("loss_temperature", loss_temperature, z.shape[:-1])
    steps = _steps(step, np.broadcast_shapes(z.shape[:-1], tokens.shape, measured.shape, trained.shape))
    scores = _first.discriminant(z / measured[..., np.newaxis])
    if loss_temperature is None:
        centred = _first.centered_discriminant(z / measured[..., np.newaxis], tokens)
    else:
        direction = _first.grpo_direction(z / trained[..., np.newaxis], tokens)
        centred = (scores * direction).sum(axis=-1)
    return (-steps / (measured * trained) * centred)[()]


def baseline_boundary(logits: ArrayLike) -> FloatArray:
    """Probability at which the centred discriminant changes sign: the true boundary of the quadrants.

    Section B.14 of the theory notes.

    Formula: S_c,k > 0 ⇔ p_k > p_N, p_N = N / W(N e^H) = e^{−H + W(N e^H)} ≥ e^{−H}, with W the Lambert function; at
    N = 0, where p is uniform, p_N is the limit e^{−H}.

    Symbols: z is `logits`; p_N is the result.

    Shapes: (..., V) in, (...) out. No unit, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> boundary = baseline_boundary(np.log([0.5, 0.45, 0.05]))
        >>> print(f"{boundary:.4f}")  # so the second token, above e^{−H} = .4265, is below it
        0.4696
    """
    lambertw = import_module("scipy.special").lambertw

    H, N = _categorical.entropy(logits), _first.baseline(logits)
    W = np.real(lambertw(N * np.exp(H)))
    return np.exp(W - H)[()]


def output_matrix_change(
    logits: ArrayLike, hidden: ArrayLike, tokens: ArrayLike, weights: ArrayLike, step: float
) -> FloatArray:
    """First-order change of the entropy at every position of a batch when a step is taken on the output matrix.

    Section B.15 of the theory notes.

    Formula: ΔH_s ≈ −η Σ_t g_t ⟨h_s, h_t⟩ [S^s_{y_t} − Σ_i p_{t,i} S^s_i], for z_t = W h_t and one step of gradient
    ascent on Σ_t g_t log p_t[y_t] in W alone. With orthonormal hidden states it is Theorem 3.3 at each position.

    Symbols: z is `logits`; h is `hidden`; y is `tokens`; g is `weights` (r A of each token); η is `step`.

    Shapes: logits (T, V), hidden (T, D), tokens (T,), weights (T,), step a number. Returns (T,). Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; all else finite. The error is O(η²).

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> change = output_matrix_change([[1.0, 0.0, -1.0]] * 2, [[1.0, 0.0], [0.0, 1.0]], [0, 2], [1.0, 0.0], 0.1)
        >>> print(np.round(change, 6) + 0.0)
        [-0.014182  0.      ]
    """
    z = as_logits(logits)
    if z.ndim != 2:
        raise invalid("logits", "shape (T, V)", f"shape {z.shape}")
    states, gains = as_real("hidden", hidden), as_real("weights", weights)
    chosen = as_tokens(tokens, z.shape)
    for name, array, shape in (("hidden", states, (len(z), -1)), ("weights", gains, (len(z),))):
        if array.ndim != len(shape) or len(array) != len(z):
            raise invalid(name, f"{len(z)} rows as the logits have, {len(shape)} axes", f"shape {array.shape}")
        if not np.isfinite(array).all():
            raise invalid(name, "finite values", "NaN or an infinity")
    if chosen.shape != (len(z),):
        raise invalid("tokens", f"shape ({len(z)},)", f"shape {chosen.shape}")
    eta = _steps(step, ())
    scores = _first.discriminant(z)
    centred = scores @ _first.grpo_direction(z, chosen).T  # [s, t]: Σ_i S^s_i (e_{y_t} − p_t)_i
    return -eta * (states @ states.T * centred) @ gains


def tangent_influence(logits: ArrayLike, tangent: ArrayLike, token: ArrayLike | None = None) -> FloatArray:
    """How much mean entropy changes per unit of a token's gradient weight, when weights are shared.

    Part E of the theory notes.

    Formula: D_t(y) = ⟨∇H̄, ∇log p_t(y)⟩ = u_y − E_{p_t}[u], u = J_t ∇H̄; one step of gradient ascent on
    (1/n) Σ g_t log p_t changes H̄ by (η/n) Σ g_t D_t + O(η²). With free logits u = −S/n and D = −S_c/n.

    Symbols: z is `logits`; u is `tangent`, the logits' derivative along ∇H̄ (or along P ∇H̄ for a preconditioner P); y is
    `token`, or every token; D is the result.

    Shapes: logits (..., V), tangent (..., V), token an integer or integers (...); leading shapes broadcast. Returns
    (..., V) without a token and (...) with one. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; tangent finite; ∇H̄ does not depend on y_t.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> print(np.round(tangent_influence([1.0, 0.0, -1.0], [0.2, -0.1, 0.0]), 4))
        [ 0.0914 -0.2086 -0.1086]
    """
    z = as_logits(logits)
    u = as_direction("tangent", tangent, z.shape)
    probs = np.exp(_categorical.log_softmax(z))
    # Measured from the likeliest token, so that its D keeps its digits on a nearly deterministic row.
    shape = np.broadcast_shapes(z.shape, u.shape)
    top = np.broadcast_to(z.argmax(axis=-1)[..., np.newaxis], (*shape[:-1], 1))
    relative = u - np.take_along_axis(np.broadcast_to(u, shape), top, axis=-1)
    influence: FloatArray = relative - (probs * relative).sum(axis=-1, keepdims=True)
    return influence if token is None else at_token(influence, as_tokens(token, influence.shape))[()]


def score_covariances(logits: ArrayLike, advantages: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The two covariances that are used to predict collapse: with the discriminant, and with the log-probability.

    Section B.9 of the theory notes; the second is that of arXiv 2505.22617.

    Formula: Cov_p(log p, p A) = Cov_p(A, S) + E_p[A] N; equal iff E_p[A] = 0 or p is uniform.

    Symbols: z is `logits`; A is `advantages`; the result is Cov_p(A, S) and Cov_p(log p, p A).

    Shapes: (..., V) and (..., V), leading shapes broadcast; (...) out, twice. Nats, float64.

    Domain: V ≥ 2; logits finite or −inf, with a finite one in every row; advantages finite.

    Raises:
        ValueError: If an argument is not real or outside this domain, or if the shapes do not fit.

    Example:
        >>> by_score, by_log = score_covariances([1.0, 0.0], [1.0, 1.0])
        >>> print(f"{by_score:.4f} {by_log:.4f}")
        0.0000 0.0909
    """
    z = as_logits(logits)
    values = as_direction("advantages", advantages, z.shape)
    log_probs = _categorical.log_softmax(z)
    probs = np.exp(log_probs)
    excess = np.where(probs > 0.0, log_probs, 0.0) + np.asarray(_categorical.entropy(z))[..., np.newaxis]
    by_log = (probs * excess * probs * values).sum(axis=-1)  # E[log p + H] = 0: one factor centred is enough
    by_score = -np.asarray(expected_change(z, values, 1.0))
    return by_score[()], by_log[()]


def _steps(step: ArrayLike, leading: tuple[int, ...], name: str = "step") -> FloatArray:
    steps = as_real(name, step)
    if not np.isfinite(steps).all():
        raise invalid(name, "finite values", "NaN or an infinity")
    joint_shape(name, steps.shape, leading)
    return steps


def _temperature(name: str, temperature: ArrayLike, leading: tuple[int, ...]) -> FloatArray:
    values = as_real(name, temperature)
    if not ((values > 0.0) & np.isfinite(values)).all():
        raise invalid(name, "finite values > 0", values[~((values > 0.0) & np.isfinite(values))].flat[0])
    joint_shape(name, values.shape, leading)
    return values
