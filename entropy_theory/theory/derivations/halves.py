"""One step of any size keeps its half: where S_c = 0, raising z_k against any other logit raises S_c.

The policy is split at the sampled token: Q = q_k, and r is the policy of the others, with entropy H, M = Σ r², baseline
N = Σ r² (H + log r) and K = N/(1 + M). For another token j, a = r_j and u = H + log a. Then
S_c = (1 − Q)² (1 + M) (Q x − K) with x = logit Q + H, and the claim is that T, the slope of Q x − K along e_k − e_j, is
positive where Q x = K. Every direction e_k − λ p, of whatever policy p, is a sum of such directions with weights ≥ 0
(and of e_k, which is their mean), so along a ray S_c can only cross 0 upwards, and does so once.

Proof of T > 0, with δ = Q − M/(1 + M) and m = max r. First 0 ≤ δ and Q ≤ ½. (A) If a = m, then T ≥ Q. (B) If a < m,
then a ≤ ½; for u ≥ 0 the losses are at most ¾ Q/e, for u < 0 less than (37/50 + 13/50) Q, so T > 0.
"""

from __future__ import annotations

import sympy as sp

from entropy_theory.theory.derivations.engine import Derivation, Step, simplified, sum_by_monomials

_Q, _H, _M, _N, _K = sp.symbols("Q H M N K", positive=True)
_A = sp.Symbol("a", positive=True)  # r_j
_U, _X = sp.symbols("u x", real=True)
_LOG_Q, _LOG_REST = sp.symbols("\\log{Q} \\log(1-Q)", real=True)
_R, _L = sp.symbols("r_i \\log{r_i}", positive=True)
_SUMS = {(1, 0): sp.Integer(1), (1, 1): -_H, (2, 0): _M, (2, 1): _N - _H * _M}

# T, from the slopes of Q, of H, of M and of N along e_k − e_j, before and after it is ordered by K, u and the rest.
_SLOPE_N = _A * (_A * (1 + 2 * _U) - 2 * _N - _M * (1 + _U))  # ∂N/∂z_j, section B.1
_SLOPE_M = 2 * _A * (_A - _M)
_T = (
    (1 + _A) * (1 - _Q - 2 * _A / (1 + _M)) * _K
    + _A * (_Q + (2 * _A - _M) / (1 + _M)) * _U
    + _Q * (1 + _A)
    + _A * (_A - _M) / (1 + _M)
)


def one_step_keeps_its_half() -> Derivation:
    """Derive that one step of any size never crosses S_c = 0 from falling to rising entropy.

    T3 in part D of the theory notes, where it is a conjecture.

    Formula: S_c(q; k) = 0 ⇒ ∂S_c/∂z_k > ∂S_c/∂z_j for every j ≠ k; hence α S_c(p) ≥ 0 ⇒ α S_c(q_α) ≥ 0.

    Symbols: those of the module; w ≥ 0 is what is left over in an inequality.
    """
    return Derivation(
        "one-step-keeps-its-half",
        (*_reduction(), *_bounds_of_q(), *_likeliest(), *_not_the_likeliest()),
        simplified(_slope_of_half() - _T),
    )


def _sum(summand: sp.Expr) -> sp.Expr:
    """Sum over the other tokens of a polynomial in r and log r."""
    return sum_by_monomials(summand, (_R, _L), _SUMS)


def _slope_of_half() -> sp.Expr:
    """Slope of Q x − K along e_k − e_j where Q x = K."""
    odds = 1 + _A  # of log(q_k / Σ q_i)
    tilt = odds + _A * _U  # of x: H moves by S_j = a u, because ∂H/∂z_j = −S_j
    baseline = _SLOPE_N / (1 + _M) - _N * _SLOPE_M / (1 + _M) ** 2  # ∂K/∂z_j
    return (_Q * (1 - _Q) * odds * (_K / _Q) + _Q * tilt + baseline).subs(_N, _K * (1 + _M))


def _reduction() -> tuple[Step, ...]:
    rest = 1 - _Q
    entropy = -_Q * _LOG_Q - rest * _LOG_REST + rest * _H
    own = _Q * (entropy + _LOG_Q)
    baseline = _Q * own + _sum((rest * _R) ** 2 * (entropy + _LOG_REST + _L))
    tilt = _LOG_Q - _LOG_REST + _H
    p_k, p_j = sp.symbols("p_k p_j", positive=True)
    hit = sp.Symbol("\\delta_{ij}", real=True)
    gap = sum_by_monomials(p_j * (1 + hit), (p_j, hit), {(1, 0): 1 - p_k, (1, 1): p_j})
    return (
        Step(
            "Split the policy at the sampled token.",
            "S_c",
            sp.expand(own - baseline),
            sp.expand((1 - _Q) ** 2 * ((1 + _M) * _Q * tilt - _N)),
        ),
        Step(
            "e_k − p is the sum of p_j (e_k − e_j): both lead every other logit by 1 − p_k + p_j.",
            r"d_k - d_j",
            gap,
            1 - p_k + p_j,
        ),
        Step("The slope of Q x − K along e_k − e_j where Q x = K.", "T", _slope_of_half(), _T),
    )


def _bounds_of_q() -> tuple[Step, ...]:
    least = _M / (1 + _M)
    odds = lambda q: q * (sp.log(sp.cancel(q / (1 - q))) + _H)  # noqa: E731  Q x
    top = sp.Symbol("u_{max}", nonnegative=True)
    return (
        Step(
            "With μ_i = r_i²/M, a policy, N exceeds M (H + log M) by M times a divergence ...",
            r"M\,\mathrm{KL}(\mu \,\|\, r)",
            sp.expand(_sum(_R**2 * (_L - sp.log(_M)))),
            sp.expand(_N - _M * (_H + sp.log(_M))),
        ),
        Step(
            "... and H + log M is one.",
            r"\mathrm{KL}(r \,\|\, \mu)",
            _sum(_R * _L - _R * (2 * _L - sp.log(_M))),
            _H + sp.log(_M),
        ),
        Step(
            "So at Q = M/(1 + M), Q x is at most K ...",
            r"Q x",
            odds(least),
            least * (_H + sp.log(_M)),
        ),
        Step(
            "... and where x ≥ 0, Q x increases: hence δ ≥ 0.",
            r"\frac{d}{dQ} Q x",
            sp.diff(odds(_Q), _Q),
            sp.log(_Q / (1 - _Q)) + _H + 1 / (1 - _Q),
        ),
        Step("At Q = ½, Q x is H/2 ...", "Q x", odds(sp.Rational(1, 2)), _H / 2),
        Step(
            "... and K ≤ H/2, because u ≤ H and M ≤ 1: hence Q ≤ ½, logit Q ≤ 0, K = Q x ≤ Q H.",
            r"H/2 - M u_{max}/(1 + M)",
            (_H / 2 - least * top).subs(_H, top),
            top * (1 - _M) / (2 * (1 + _M)),
        ),
        Step(
            "In δ, what depends neither on K nor on u is positive ...",
            r"Q (1 + a) + \frac{a (a - M)}{1 + M}",
            _Q * (1 + _A) + _A * (_A - _M) / (1 + _M),
            _Q + _A * (_Q - least) + _A**2 / (1 + _M),
        ),
        Step(
            "... and so is the factor of u.",
            r"Q + \frac{2a - M}{1 + M}",
            _Q + (2 * _A - _M) / (1 + _M),
            (_Q - least) + 2 * _A / (1 + _M),
        ),
    )


def _likeliest() -> tuple[Step, ...]:
    surplus = sp.Symbol("w", nonnegative=True)  # a − M ≥ 0
    gain = 2 * _A**2 * _U / (1 + _M)
    loss = 2 * _A * (1 + _A) / (1 + _M) * _M * _U / (1 + _M)  # K ≤ M u/(1 + M)
    return (
        Step(
            "(A) a = max r: u is the largest excess, so N ≤ M u; and M ≤ a. The loss in K is covered by the gain in u,"
            " and T ≥ Q.",
            r"\frac{2a^2 u}{1 + M} - \frac{2a (1 + a)}{1 + M} \frac{M u}{1 + M}",
            (gain - loss).subs(_M, _A - surplus),
            2 * _A * _U * surplus / (1 + _A - surplus) ** 2,
        ),
    )


def _not_the_likeliest() -> tuple[Step, ...]:
    m, e = sp.Symbol("m", positive=True), sp.E
    kappa = (1 + _A) * (4 * _A - 1 - _M) / (2 * (1 + _M))
    score = _A * (_H + sp.log(_A))
    spread = _A * sp.log(m / _A)
    bend = sp.Rational(26, 50) * _A * (1 + 2 * _A**2) - (1 - _A**2) * (4 * _A - 1 - 2 * _A**2)
    return (
        Step(
            "(B) a < m: a ≤ ½, because a + m ≤ 1. With Q ≤ ½ the loss in K has at most the factor κ.",
            r"(1 + a)\Big(\frac{2a}{1 + M} - \frac12\Big)",
            (1 + _A) * (2 * _A / (1 + _M) - sp.Rational(1, 2)),
            kappa,
        ),
        Step(
            "κ M is at most (1 + a)(4a − 1)²/(8 (1 + M)) ...",
            r"(4a - 1)^2/4 - M (4a - 1 - M)",
            sp.expand((4 * _A - 1) ** 2 / 4 - _M * (4 * _A - 1 - _M)),
            sp.expand((4 * _A - 1 - 2 * _M) ** 2 / 4),
        ),
        Step(
            "... so at most ¾ a²/(1 + M), because 0 < 4a − 1 ≤ 2a and a ≤ ½.",
            r"(2a)^2 - (4a - 1)^2",
            sp.expand((2 * _A) ** 2 - (4 * _A - 1) ** 2),
            sp.expand((1 - 2 * _A) * (6 * _A - 1)),
        ),
        Step(
            "(B, u ≥ 0) K ≤ M (u + log(m/a))/(1 + M). The part with u is covered by 2a² u/(1 + M); in the other,"
            " a log(m/a), concave in a, is largest at a = m/e ...",
            r"\frac{d}{da} a \log\tfrac{m}{a}",
            sp.simplify(sp.expand_log(sp.diff(spread, _A).subs(_A, m / e), force=True)),
            sp.Integer(0),
        ),
        Step(
            "... where it is m/e: so that part is at most ¾ a m/(e (1 + M)) ≤ ¾ M/(e (1 + M)) ≤ ¾ Q/e, because"
            " a m ≤ m² ≤ M.",
            r"a \log\tfrac{m}{a}",
            sp.expand_log(spread.subs(_A, m / e), force=True),
            m / e,
        ),
        Step(
            "(B, u < 0) a u is convex in a and stationary at a = e^{−(1 + H)} ...",
            r"\partial (a u)/\partial a",
            sp.diff(score, _A).subs(_A, sp.exp(-(1 + _H))),
            sp.Integer(0),
        ),
        Step(
            "... so −a u is at most e^{−(1 + H)} ...",
            r"\min_a\, a u",
            sp.simplify(score.subs(_A, sp.exp(-(1 + _H)))),
            -sp.exp(-(1 + _H)),
        ),
        Step(
            "... and e^{−H} ≤ M. So the loss in u is at most δ/e + 2a M/(e (1 + M)) ≤ 2Q/e, less than 37/50 Q.",
            r"\operatorname{sign}(37 e - 100)",
            sp.sign(37 * e - 100),
            sp.Integer(1),
        ),
        Step(
            "With M ≥ a² + m² ≥ 2a², κ is at most this ...",
            r"\kappa",
            kappa.subs(_M, 2 * _A**2),
            (1 + _A) * (4 * _A - 1 - 2 * _A**2) / (2 * (1 + 2 * _A**2)),
        ),
        Step(
            "... because it falls with M.",
            r"\partial \kappa/\partial M",
            sp.diff(kappa, _M),
            -2 * _A * (1 + _A) / (1 + _M) ** 2,
        ),
        Step(
            "The loss in K is at most κ Q H with H < log(1/a) ≤ (1 − a)/a, so at most 13/50 Q: this polynomial has no"
            " root in [0, ½] ...",
            r"\#\{\tfrac{26}{50} a (1 + 2a^2) = (1 - a^2)(4a - 1 - 2a^2)\}",
            sp.Integer(sp.Poly(bend, _A).count_roots(0, sp.Rational(1, 2))),
            sp.Integer(0),
        ),
        Step("... and is positive at 0.", "1", bend.subs(_A, 0), sp.Integer(1)),
    )
