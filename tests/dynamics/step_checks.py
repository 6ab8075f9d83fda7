"""What holds for compiled steps of any kind: the numbers of many digits, and those of the torch path."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracles
import torch
from mpmath import mp

from entropy_theory.dynamics import SimulationConfig, bank, grpo, starts
from entropy_theory.dynamics.eager import EagerPolicies
from entropy_theory.dynamics.grpo import Update
from entropy_theory.dynamics.policies import Policies

Make = Callable[[SimulationConfig, range], Policies]


def update_of(coefficients: torch.Tensor, scale: float, bonus: torch.Tensor | None = None) -> Update:
    return Update(coefficients, scale, bonus, {})


def coefficients_of(kind: str, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Centred ones, which move the sampled tokens alone; the same with some dropped; and all alike."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centred = drawn - drawn.mean(-1, keepdim=True)
    return {"centred": centred, "dropped": centred * (drawn < 0.8), "ones": torch.ones_like(drawn)}[kind]


def equal_to_many_digits(make: Make, gap: float, kind: str, drawn: tuple[int, ...], device: str = "cpu") -> None:
    """Hold H, N, S, S_c, ΔH and both orders against many digits, where all but one probability is tiny."""
    V, G, scale = 12, 6, 1e-3
    z = torch.randn(1, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z[0, 3] = z.max() + gap
    tokens = torch.tensor([drawn])
    exact = oracles.ExactPolicy.of(z[0].numpy())
    config = SimulationConfig(policies=1, vocab_size=V, group_size=G)
    policies = make(config, range(1))
    here, drawn_here = z.to(device), tokens.to(device)
    reading = policies.read(here, here > 0, 0, drawn_here, None, True)
    S, N = exact.discriminants, exact.baseline
    assert oracles.relative_error(reading.policies["entropy"].item(), exact.entropy) < 1e-14
    assert oracles.relative_error(reading.policies["baseline"].item(), N) < 1e-14
    squares = mp.fsum(value**2 for value in S)
    assert oracles.relative_error(reading.policies["sum_squared_discriminant"].item(), squares) < 1e-13
    for j, k in enumerate(tokens[0].tolist()):
        assert oracles.relative_error(reading.scores.discriminant[0, j].item(), S[k]) < 1e-13
        assert oracles.relative_error(reading.scores.centered_discriminant[0, j].item(), S[k] - N) < 1e-13

    g = coefficients_of(kind, (1, G))
    with mp.workdps(exact.digits):
        weights = [mp.mpf(scale) * mp.mpf(float(value)) for value in g[0]]
        move = [-mp.fsum(weights) * p for p in exact.probs]
        for j, k in enumerate(tokens[0].tolist()):
            move[k] += weights[j]
        moved = oracles.ExactPolicy.of_exact(
            [mp.mpf(float(value)) + step for value, step in zip(z[0], move, strict=True)], (1,) * V, exact.digits
        )
        change = moved.entropy - exact.entropy
        first = -mp.fsum(s * step for s, step in zip(S, move, strict=True))
        second = oracles.exact_curvature(z[0].numpy(), move, exact.digits) / 2
        excess = [mp.log(p) + exact.entropy for p in exact.probs]
        relative = [abs(step - move[3]) for step in move]
        budget = mp.fsum(p * r * (1 + abs(u)) for p, r, u in zip(exact.probs, relative, excess, strict=True))
    results = policies.move(here, drawn_here, update_of(g.to(device), scale), 1, measure=True)
    assert results is not None
    # the round-off that bank.entropy_change states, in units of 1e-16; the second order's terms are smaller by |δ|;
    # twenty units: p, u and δ of each of the twelve tokens are rounded, and so is their sum
    for value, expected, unit in zip(results, (change, first, second), (1.0, 1.0, scale), strict=True):
        assert abs(mp.mpf(value.item()) - expected) <= 2e-15 * unit * budget


def long_double_scores(z: torch.Tensor, tokens: torch.Tensor) -> dict[str, np.ndarray]:
    """log p, S and S_c of the drawn tokens in the long double of C."""
    d = z.cpu().double().numpy().astype(np.longdouble)
    d = d - d.max(-1, keepdims=True)
    log_p = d - np.log(np.exp(d).sum(-1, keepdims=True))
    p = np.exp(log_p)
    S = p * (log_p - (p * log_p).sum(-1, keepdims=True))
    scores = {"log_probs": log_p, "discriminant": S, "centered_discriminant": S - (p * S).sum(-1, keepdims=True)}
    return {name: np.take_along_axis(value, tokens.cpu().numpy(), -1) for name, value in scores.items()}


def equal_to_the_torch_path(
    make: Make, dtype: str, kind: str, start: str, vocab_size: int, step: float, rows: int, device: str = "cpu"
) -> None:
    """Hold what a policy's step gives against `EagerPolicies`, and the scores of both against long doubles."""
    G = 16
    config = SimulationConfig(policies=rows, vocab_size=vocab_size, group_size=G, dtype=dtype, seed=4)
    z = {
        "gaussian": lambda: starts.gaussian_logits(rows, vocab_size, 1.5, 0),
        "forking": lambda: starts.forking_logits(rows, vocab_size, 0),
        "uniform": lambda: starts.uniform_logits(rows, vocab_size),
        "ties": lambda: starts.gaussian_logits(rows, vocab_size, 1.5, 0).clamp_(max=1.0),
        "offset": lambda: starts.gaussian_logits(rows, vocab_size, 1.5, 0) + 1e4,
    }[start]().to(device, getattr(torch, dtype))
    mine, theirs = z.clone(), z.clone()
    compiled, reference = make(config, range(rows)), EagerPolicies(config, range(rows), None)
    a, b = (policies.read(z, z > 1, 7, None, None, True) for policies in (compiled, reference))
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.rewards, b.rewards)
    torch.testing.assert_close(a.advantages, b.advantages, rtol=1e-15, atol=1e-16)
    policy = bank.policy_statistics(z)
    for name, value in a.policies.items():  # sums of V terms, added in another order; N and Σ S² are of either sign
        terms = policy.probs.square() * policy.excess.abs() if name == "baseline" else b.policies[name].unsqueeze(-1)
        assert ((value - b.policies[name]).abs() <= 4e-15 * (terms.sum(-1) + 1e-300)).all(), name
    exact = long_double_scores(z, a.tokens)
    for name, expected in exact.items():
        # u carries the rounding of E_p[d], relative to the spread of the logits
        spread = policy.excess.abs().amax(-1, keepdim=True)
        unit = spread if name == "log_probs" else policy.probs.gather(-1, a.tokens) * spread + policy.baseline[:, None]
        for scores in (a.scores, b.scores):
            error = np.abs(getattr(scores, name).cpu().numpy() - expected)
            assert (error <= 1e-15 * (unit.cpu().numpy() + np.abs(expected))).all(), name
    for x, y, scores in zip(a.means, b.means, (a.scores.discriminant, a.scores.centered_discriminant), strict=True):
        assert ((x - y).abs() <= 1e-14 * scores.abs().amax(-1) + 1e-300).all()
    bonus = None if kind != "bonus" else torch.full((rows,), 0.3, dtype=torch.float64, device=device)
    g = coefficients_of("centred" if kind == "bonus" else kind, (rows, G)).to(device)
    update = update_of(g, step / G, bonus)
    mine_changes = compiled.move(mine, a.tokens, update, 1, measure=True)
    their_changes = reference.move(theirs, a.tokens, update, 1, measure=True)
    assert mine_changes is not None
    assert their_changes is not None
    # Both round a move to 1e-16 of Σ |s g|, whatever is left of it: s g (1 − p) of a likeliest token that is drawn.
    weight = g.abs().sum(-1) * step / G
    ulp = 2.3e-16 if dtype == "float64" else 0
    torch.testing.assert_close(mine, theirs, rtol=ulp, atol=4e-16 * float(weight.max()))
    move = grpo.move_of_logits(policy, a.tokens, g, step / G, bonus)
    relative = (move - move.gather(-1, policy.top)).abs()
    # the round-off that bank.entropy_change states, of the move and of its own; entropies where those are taken; each
    # path is within 2e-15 of the truth (`equal_to_many_digits`)
    terms = (policy.probs * (relative + weight[:, None]) * (1 + policy.excess.abs())).sum(-1)
    size = relative.amax(-1) + weight
    far = torch.where(size > 0.9, policy.entropy + 1, 0.0)
    for x, y, unit in zip(mine_changes, their_changes, (1.0, 1.0, size), strict=True):
        assert ((x - y).abs() <= 4e-15 * (terms * unit + far)).all()
