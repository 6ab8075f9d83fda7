"""Why the one-sided sign theorem stops at 0 ≤ λ ≤ 1: for every other λ, predicted falls that are rises."""

from __future__ import annotations

from collections.abc import Sequence

import sympy as sp

from entropy_theory.theory.derivations.engine import Derivation, Step, simplified

_X = sp.Symbol("\\varepsilon", positive=True)  # the small number of each family
_LOG = sp.Symbol("\\ell", real=True)  # log ε


def _predicted(counts: Sequence[sp.Expr], probs: Sequence[sp.Expr], moves: Sequence[sp.Expr]) -> sp.Expr:
    """S_d = Cov_p(d, log p) over groups of equal tokens."""
    weights = [n * p for n, p in zip(counts, probs, strict=True)]
    logs = [sp.log(p) for p in probs]
    mean_d, mean_log = (sum(w * v for w, v in zip(weights, values, strict=True)) for values in (moves, logs))
    return sum(w * d * v for w, d, v in zip(weights, moves, logs, strict=True)) - mean_d * mean_log


def _limit(expression: sp.Expr, order: int = 0) -> sp.Expr:
    """The limit of expression/ε^order as ε → 0, a polynomial in ℓ = log ε.

    With ℓ a symbol of its own the expression is analytic in ε, so that Taylor's coefficients say it all: ε^j ℓ^m → 0
    for j > 0. A coefficient below the order would make the limit infinite; it is left in, divided by its power of ε.
    """
    apart = sp.expand_log(expression, force=True).subs(sp.log(_X), _LOG)
    terms = [sp.diff(apart, _X, n).subs(_X, 0) / sp.factorial(n) * _X ** (n - order) for n in range(order + 1)]
    return sum((simplified(sp.expand_log(term, force=True)) for term in terms), sp.Integer(0))


def _per_log(limit: sp.Expr) -> sp.Expr:
    """What a limit a ℓ + b becomes when it is divided by ℓ → −∞."""
    polynomial = sp.Poly(limit, _LOG)
    return polynomial.coeff_monomial(_LOG) if polynomial.degree() <= 1 else sp.zoo


def small_negative_share() -> Derivation:
    """Derive a predicted fall that is a rise for every −1 < λ < 0.

    Part D of the theory notes.

    Formula: p = (aε, 1 − (a + 1)ε, ε), k the first token, a > μ/(1 − μ), α = log ε/μ, ε → 0: S_d < 0, ΔH → log 2.

    Symbols: μ = |λ|; both ε and α S_d are such that a fall is predicted, because α < 0.
    """
    mu, a = sp.symbols("\\mu a", positive=True)
    probs = (a * _X, 1 - (a + 1) * _X, _X)
    moves = (1 + mu * probs[0], mu * probs[1], mu * probs[2])
    alpha = sp.log(_X) / mu
    score = -_per_log(_limit(_predicted((1, 1, 1), probs, moves), order=1))
    second = sp.log(probs[1]) - sp.log(probs[2]) + alpha * (moves[1] - moves[2])
    first = sp.log(probs[0]) - sp.log(probs[2]) + alpha * (moves[0] - moves[2])
    excess = sp.Symbol("b", positive=True)  # a = μ/(1 − μ) + b
    steps = (
        Step(
            "S_d in units of ε log(1/ε).",
            r"\lim \frac{S_d}{-\varepsilon \log\varepsilon}",
            score,
            sp.expand(mu * (a + 1) - a),
        ),
        Step(
            "It is negative for a above μ/(1 − μ).",
            "\\mu (a + 1) - a",
            score.subs(a, mu / (1 - mu) + excess),
            -excess * (1 - mu),
        ),
        Step("The second and third token end alike ...", r"\lim \log \tfrac{q_2}{q_3}", _limit(second), sp.Integer(0)),
        Step(
            "... and the first has vanished: its log-odds are this times log ε.",
            r"\lim \frac{\log (q_1/q_3)}{\log \varepsilon}",
            _per_log(_limit(first)),
            1 / mu,
        ),
        Step(
            "So entropy rises from 0 to log 2.", r"\lim H(p)", _limit(-sum(p * sp.log(p) for p in probs)), sp.Integer(0)
        ),
    )
    return Derivation("sharpness-of-the-sign-theorem", steps, sp.expand(score - mu * (a + 1) + a))


def negative_share() -> Derivation:
    """Derive a predicted fall that is a rise for every λ < 0, λ ≤ −1 included.

    Part D of the theory notes.

    Formula: p_k = ε³ and V > μ others with (1 − ε³)(1 ± ε)/V each, α = log(1/(V p_k))/(1 − μ/V), ε → 0: S_d > 0,
    α > 0, ΔH → log(1 + 1/V).

    Symbols: μ = |λ|; half of the others have the upper sign; g = 1 − μ/V > 0.
    """
    V, gap = sp.symbols("V g", positive=True)
    mu = V * (1 - gap)
    p_k = _X**3
    high, low = ((1 - p_k) * (1 + sign * _X) / V for sign in (1, -1))
    probs = (p_k, high, low)
    moves = (1 + mu * p_k, mu * high, mu * low)
    alpha = -sp.log(V * p_k) / gap
    limit = _limit(_predicted((1, V / 2, V / 2), probs, moves), order=2)
    odds = [sp.log(p_k) - sp.log(p) + alpha * (moves[0] - d) for p, d in zip(probs[1:], moves[1:], strict=True)]
    steps = (
        Step("S_d in units of ε².", r"\lim S_d/\varepsilon^2", limit, 1 - gap),
        Step(
            "The sampled token ends like those above ...", r"\lim \log \tfrac{q_k}{q_+}", _limit(odds[0]), sp.Integer(0)
        ),
        Step(
            "... and like those below: the policy ends uniform on V + 1.",
            r"\lim \log \tfrac{q_k}{q_-}",
            _limit(odds[1]),
            sp.Integer(0),
        ),
        Step(
            "It began uniform on V.",
            r"\lim H(p)",
            _limit(-(p_k * sp.log(p_k) + V / 2 * (high * sp.log(high) + low * sp.log(low)))),
            sp.log(V),
        ),
    )
    return Derivation("sharpness-of-the-sign-theorem", steps, limit - (1 - gap))


def large_share() -> Derivation:
    """Derive a predicted fall that is a rise for every λ > 1.

    Part D of the theory notes.

    Formula: p_k = (1 + ε)/λ, m ≥ λ equal tokens, M tiny ones of mass ε² with log M > H, ε → 0, then α → ∞: S_d > 0,
    H → log M.

    Symbols: λ = 1 + l; m = λ + y.
    """
    excess, more, tiny = sp.symbols("l y M", positive=True)
    share = 1 + excess
    m = share + more
    p_k = (1 + _X) / share
    equal, small = (1 - p_k - _X**2) / m, _X**2 / tiny
    moves = (1 - share * p_k, -share * equal, -share * small)
    score = sp.expand_log(_limit(_predicted((1, m, tiny), (p_k, equal, small), moves)), force=True)
    limit = excess / share * excess / (share * m) * sp.log(m / excess)
    steps = (
        Step("The direction hardly lowers the sampled token ...", "d_k", sp.expand(moves[0]), -_X),
        Step(
            "... and the tiny ones less still.",
            r"\lim (d_M - d_k)/\varepsilon",
            _limit(moves[2] - moves[0], order=1),
            sp.Integer(1),
        ),
        Step("They lead the m tokens, too.", r"\lim (d_M - d_m)", _limit(moves[2] - moves[1]), excess / m),
        Step("A fall is predicted for α > 0, because m > λ − 1.", r"\lim S_d", score, sp.expand_log(limit, force=True)),
        Step(
            "The M tiny tokens alone are left as α → ∞, with log M > H for M large.",
            "H",
            -tiny * (1 / tiny) * sp.expand_log(sp.log(1 / tiny), force=True),
            sp.log(tiny),
        ),
    )
    return Derivation("sharpness-of-the-sign-theorem", steps, simplified(sp.expand_log(score - limit, force=True)))
