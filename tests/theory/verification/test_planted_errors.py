"""An error planted in any numeric form makes the statements it concerns fail."""

from __future__ import annotations

import numpy as np
import pytest

import entropy_theory as et
from entropy_theory.theory import categorical, curvature, discriminant, finite_steps, on_policy, single_logit, updates
from entropy_theory.theory.verification.catalogue import statement
from entropy_theory.theory.verification.evidence import Budget, Kind

pytestmark = pytest.mark.no_cover  # laws on many inputs: counting lines takes as long, and adds none

TINY = Budget("tiny", 6, (2, 3, 17), 1_000, 1, (2, 3), 20_000, (0, 1), chains=60, rounds=40, wide=False)

EXACT, RADIUS = single_logit.single_logit_entropy_change, single_logit.sign_flip_radius
BOUNDS, REST = single_logit.discriminant_bounds, single_logit.rest_entropy
BEND, SECOND, GRPO = curvature.entropy_curvature, curvature.second_order_change, curvature.grpo_curvature
SUMS, MEAN, DRIFT = curvature.grpo_curvature_from_sums, curvature.mean_grpo_curvature, curvature.noise_drift
EXPECTED, COVARIANCES, BONUS = updates.expected_change, updates.score_covariances, updates.entropy_bonus_change
TEMPERATURE, BOUNDARY, MATRIX = updates.temperature_change, updates.baseline_boundary, updates.output_matrix_change


BOUND, SETS, RATE = finite_steps.step_bound, finite_steps.two_valued_entropy_change, finite_steps.pass_rate_entropy
TANGENT, TOTAL = updates.tangent_influence, on_policy.total_discriminant
LOGGED, LOGGED_GRADIENT = on_policy.on_policy_entropy, on_policy.on_policy_gradient


def _first_part(p, H, step):
    u = np.expm1(np.minimum(step, 50.0))
    return -u / np.maximum(1 + p * u, 1e-300) * p * (H + np.log(np.maximum(p, 1e-300)))


def _uncentred(z, d):
    probs, u = np.exp(et.log_softmax(z)), et.discriminant(z) / np.maximum(np.exp(et.log_softmax(z)), 1e-300)
    return -(probs * np.asarray(d) ** 2 * (1 + u)).sum(axis=-1)


def _without_one(z, d):
    probs = np.exp(et.log_softmax(z))
    spread = np.asarray(d) - (probs * d).sum(axis=-1, keepdims=True)
    return -(et.discriminant(z) * spread**2).sum(axis=-1)


S, N, C = discriminant.discriminant, discriminant.baseline, discriminant.centered_discriminant
D, F = discriminant.grpo_direction, discriminant.first_order_change
H, CHANGE, LOG = categorical.entropy, categorical.entropy_change, categorical.log_softmax


def _probs(logits):
    return np.exp(LOG(logits))


def _pick(values, token):
    return values if token is None else values[..., token] if values.ndim == 1 else _rows(values, token)


def _rows(values, token):
    leading = np.broadcast_shapes(values.shape[:-1], np.shape(token))
    index = np.broadcast_to(token, leading)[..., np.newaxis]
    return np.take_along_axis(np.broadcast_to(values, (*leading, values.shape[-1])), index, axis=-1)[..., 0]


def _units(logits, token):
    return (np.arange(np.shape(logits)[-1]) == np.asarray(token)[..., np.newaxis]).astype(float)


def _linear_change(logits, delta):
    p, q = _probs(logits), _probs(np.asarray(logits) + delta)
    return -((q - p) * np.where(p > 0.0, LOG(logits), 0.0)).sum(axis=-1)


# Each entry plants one error: where, what goes wrong, and which statements must notice.
PLANTED = {
    "S: sign": (discriminant, "discriminant", lambda z, k=None: -S(z, k), ["theorem-3.2"]),
    "S: factor p missing": (
        discriminant,
        "discriminant",
        lambda z, k=None: _pick(np.where(_probs(z) > 0.0, LOG(z), 0.0) + H(z)[..., np.newaxis], k),
        ["theorem-3.2", "gradient"],
    ),
    "S: H missing": (
        discriminant,
        "discriminant",
        lambda z, k=None: _pick(_probs(z) * np.where(_probs(z) > 0.0, LOG(z), 0.0), k),
        ["theorem-3.2", "gradient"],
    ),
    "S: S_c for S": (discriminant, "discriminant", C, ["theorem-3.2", "gradient"]),
    "N: weights missing": (discriminant, "baseline", lambda z: S(z).mean(axis=-1), ["corollary-3.4", "theorem-3.3"]),
    "N: sign": (discriminant, "baseline", lambda z: -N(z), ["corollary-3.4", "theorem-3.3"]),
    "S_c: baseline dropped": (
        discriminant,
        "centered_discriminant",
        S,
        ["theorem-3.3", "corollary-3.4", "corollary-3.5"],
    ),
    "S_c: baseline added": (
        discriminant,
        "centered_discriminant",
        lambda z, k=None: _pick(S(z) + N(z)[..., np.newaxis], k),
        ["theorem-3.3", "corollary-3.4", "corollary-3.5"],
    ),
    "S_c: sign": (
        discriminant,
        "centered_discriminant",
        lambda z, k=None: -C(z, k),
        ["theorem-3.3", "four-conditions"],
    ),
    "S_c: digits lost by S − N": (
        discriminant,
        "centered_discriminant",
        lambda z, k=None: _pick(S(z) - N(z)[..., np.newaxis], k),
        ["theorem-3.3"],
    ),
    "e_k − p: p dropped": (discriminant, "grpo_direction", _units, ["lemma-3.1", "theorem-3.3"]),
    "e_k − p: sign": (discriminant, "grpo_direction", lambda z, k: -D(z, k), ["lemma-3.1", "theorem-3.3"]),
    "first order: sign": (
        discriminant,
        "first_order_change",
        lambda z, d, t: -F(z, d, t),
        ["gradient", "theorem-3.3"],
    ),
    "first order: step missing": (discriminant, "first_order_change", lambda z, d, t: F(z, d, 1.0), ["gradient"]),
    "ΔH: sign": (
        categorical,
        "entropy_change",
        lambda z, d: -CHANGE(z, d),
        ["exact-identity", "theorem-3.2", "theorem-3.3", "four-conditions"],
    ),
    "ΔH: KL dropped": (categorical, "entropy_change", _linear_change, ["exact-identity"]),
    "ΔH: digits lost by H(q) − H(p)": (
        categorical,
        "entropy_change",
        lambda z, d: H(np.asarray(z) + d) - H(z),
        ["exact-identity"],
    ),
    "H: bits": (categorical, "entropy", lambda z: H(z) / np.log(2.0), ["exact-identity", "theorem-3.2"]),
    "log p: not normalised": (
        categorical,
        "log_softmax",
        lambda z: np.asarray(z) - np.max(z, axis=-1, keepdims=True),
        ["lemma-3.1"],
    ),
    "exact law: KL dropped": (single_logit, "single_logit_entropy_change", _first_part, ["exact-single-logit-law"]),
    "exact law: sign of the step": (
        single_logit,
        "single_logit_entropy_change",
        lambda p, H, e: EXACT(p, H, -np.asarray(e)),
        ["exact-single-logit-law"],
    ),
    "exact law: KL twice": (
        single_logit,
        "single_logit_entropy_change",
        lambda p, H, e: 2 * EXACT(p, H, e) - _first_part(p, H, e),
        ["exact-single-logit-law"],
    ),
    "flip radius: sign": (single_logit, "sign_flip_radius", lambda p, H: -RADIUS(p, H), ["sign-flip-radius"]),
    "flip radius: asymptote for the root": (
        single_logit,
        "sign_flip_radius",
        lambda p, H: -2 * (H + np.log(p)) / (1 - p),
        ["sign-flip-radius"],
    ),
    "flip radius: S for x": (
        single_logit,
        "sign_flip_radius",
        lambda p, H: RADIUS(p, H) * p * (1 - p),
        ["sign-flip-radius"],
    ),
    "envelope: log V for log(V − 1)": (
        single_logit,
        "discriminant_bounds",
        lambda p, V: BOUNDS(p, np.asarray(V) + 1),
        ["what-surrounds-the-token"],
    ),
    "envelope: ends exchanged": (
        single_logit,
        "discriminant_bounds",
        lambda p, V: BOUNDS(p, V)[::-1],
        ["what-surrounds-the-token"],
    ),
    "H'': sign": (curvature, "entropy_curvature", lambda z, d: -BEND(z, d), ["second-order", "second-order-grpo"]),
    "H'': direction not centred": (curvature, "entropy_curvature", _uncentred, ["second-order", "second-order-grpo"]),
    "H'': 1 dropped": (curvature, "entropy_curvature", _without_one, ["second-order", "second-order-grpo"]),
    "second order: ½ missing": (
        curvature,
        "second_order_change",
        lambda z, d, t: et.first_order_change(z, d, t) + np.asarray(t) ** 2 * BEND(z, d),
        ["second-order"],
    ),
    "second order: first order alone": (curvature, "second_order_change", et.first_order_change, ["second-order"]),
    "GRPO H'': one logit's": (
        curvature,
        "grpo_curvature",
        lambda z, k: BEND(z, (np.arange(np.shape(z)[-1]) == np.asarray(k)[..., None]).astype(float)),
        ["second-order-grpo"],
    ),
    "GRPO H'' from sums: N dropped": (
        curvature,
        "grpo_curvature_from_sums",
        lambda p, S, N, *rest: SUMS(p, S, 0.0 * np.asarray(N), *rest),
        ["second-order-grpo"],
    ),
    "GRPO H'' from sums: S_c for S": (
        curvature,
        "grpo_curvature_from_sums",
        lambda p, S, N, *rest: SUMS(p, np.asarray(S) - N, N, *rest),
        ["second-order-grpo"],
    ),
    "mean H'': factor two": (curvature, "mean_grpo_curvature", lambda z: 2 * MEAN(z), ["noise-drift"]),
    "noise drift: ½ missing": (curvature, "noise_drift", lambda z, s: 2 * DRIFT(z, s), ["noise-drift"]),
    "noise drift: sign": (curvature, "noise_drift", lambda z, s: -DRIFT(z, s), ["noise-drift"]),
    "expected change: sign": (updates, "expected_change", lambda z, A, t: -EXPECTED(z, A, t), ["expected-change"]),
    "expected change: A not centred": (
        updates,
        "expected_change",
        lambda z, A, t: -np.asarray(t) * (np.exp(et.log_softmax(z)) * A * et.discriminant(z)).sum(-1),
        ["expected-change"],
    ),
    "covariances: exchanged": (
        updates,
        "score_covariances",
        lambda z, A: COVARIANCES(z, A)[::-1],
        ["two-covariances"],
    ),
    "entropy bonus: S for S²": (
        updates,
        "entropy_bonus_change",
        lambda z, b: np.asarray(b) * np.abs(et.discriminant(z)).sum(-1),
        ["entropy-bonus"],
    ),
    "temperature: 1/T for 1/T²": (
        updates,
        "temperature_change",
        lambda z, k, a, T, loss=None: T * TEMPERATURE(z, k, a, T, loss),
        ["temperature"],
    ),
    "temperature: own baseline for the loss's": (
        updates,
        "temperature_change",
        lambda z, k, a, T, loss=None: TEMPERATURE(z, k, a, T) * (1.0 if loss is None else T / loss),
        ["temperature"],
    ),
    "boundary: e^−H": (updates, "baseline_boundary", lambda z: np.exp(-et.entropy(z)), ["baseline-boundary"]),
    "output matrix: inner products dropped": (
        updates,
        "output_matrix_change",
        lambda z, h, y, g, t: MATRIX(z, np.eye(len(z)), y, g, t),
        ["shared-output-matrix"],
    ),
    "output matrix: weights dropped": (
        updates,
        "output_matrix_change",
        lambda z, h, y, g, t: MATRIX(z, h, y, np.ones(len(z)), t),
        ["shared-output-matrix"],
    ),
    "step bound: KL dropped": (
        finite_steps,
        "step_bound",
        lambda z, k, a: np.where(np.asarray(a) < 0, BOUND(z, k, a), 0.0),
        ["step-bound"],
    ),
    "step bound: sign of the step": (
        finite_steps,
        "step_bound",
        lambda z, k, a: BOUND(z, k, -np.asarray(a)),
        ["step-bound"],
    ),
    "step bound: first order for q − p": (
        finite_steps,
        "step_bound",
        lambda z, k, a: -np.asarray(a) * C(z, k),
        ["step-bound"],
    ),
    "set of tokens: sign of x": (
        finite_steps,
        "two_valued_entropy_change",
        lambda P, inside, outside, e: SETS(P, outside, inside, e),
        ["two-valued-directions"],
    ),
    "set of tokens: KL dropped": (
        finite_steps,
        "two_valued_entropy_change",
        lambda P, inside, outside, e: np.asarray(e) * 1e-3 + SETS(P, inside, outside, e),
        ["two-valued-directions"],
    ),
    "pass rate: right and wrong exchanged": (
        finite_steps,
        "pass_rate_entropy",
        lambda Q, right, wrong: RATE(Q, wrong, right),
        ["two-valued-directions"],
    ),
    "pass rate: h dropped": (
        finite_steps,
        "pass_rate_entropy",
        lambda Q, right, wrong: Q * right + (1 - Q) * wrong,
        ["two-valued-directions"],
    ),
    "influence: not centred": (
        updates,
        "tangent_influence",
        lambda z, u, k=None: _pick(np.asarray(u) + 0.0 * np.asarray(z), k),
        ["influence", "tangent-logits"],
    ),
    "influence: sign": (
        updates,
        "tangent_influence",
        lambda z, u, k=None: -TANGENT(z, u, k),
        ["influence", "tangent-logits"],
    ),
    "influence: mean over tokens alike": (
        updates,
        "tangent_influence",
        lambda z, u, k=None: _pick(u - np.mean(u, axis=-1, keepdims=True), k),
        ["influence", "tangent-logits"],
    ),
    "on-policy entropy: another mean": (
        on_policy,
        "on_policy_entropy",
        lambda tree, z, mean="token": LOGGED(tree, z, "sequence" if mean == "token" else "token"),
        ["state-shift", "tabular-state-shift"],
    ),
    "on-policy gradient: parts exchanged": (
        on_policy,
        "on_policy_gradient",
        lambda tree, z, mean="token": LOGGED_GRADIENT(tree, z, mean)[::-1],
        ["state-shift"],
    ),
    "on-policy gradient: shift dropped": (
        on_policy,
        "on_policy_gradient",
        lambda tree, z, mean="token": (LOGGED_GRADIENT(tree, z, mean)[0], 0.0 * np.asarray(z)),
        ["state-shift", "tabular-state-shift"],
    ),
    "total discriminant: future dropped": (on_policy, "total_discriminant", lambda z, Q: S(z), ["tabular-state-shift"]),
    "total discriminant: sign of the future": (
        on_policy,
        "total_discriminant",
        lambda z, Q: TOTAL(z, -np.asarray(Q)),
        ["tabular-state-shift"],
    ),
    "ΔH along a ray: sign": (
        categorical,
        "entropy_change",
        lambda z, d: -CHANGE(z, d),
        ["concavity", "unimodal-rise", "two-valued-directions"],
    ),
    "S_c along the flow: sign": (
        discriminant,
        "centered_discriminant",
        lambda z, k=None: -C(z, k),
        ["many-small-steps", "one-step-keeps-its-half"],
    ),
}


def passed(identifier: str) -> bool:
    """Whether every check of a statement passes that computes with the code; a derivation does not depend on it."""
    checks = [check for check in statement(identifier).checks if check.kind is not Kind.SYMBOLIC]
    verdicts = [check(TINY).passed for check in checks]  # all of them: a plant must not break a check's own code
    return all(verdicts)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_fails_the_statements_it_concerns(name, monkeypatch):
    module, attribute, wrong, concerned = PLANTED[name]
    monkeypatch.setattr(module, attribute, wrong)
    for identifier in concerned:
        assert not passed(identifier), f"{identifier} did not notice"


def test_without_a_plant_they_pass():
    for identifier in {name for *_, names in PLANTED.values() for name in names}:
        assert passed(identifier), identifier
