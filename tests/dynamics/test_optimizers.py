"""Natural gradient against the Fisher matrix and many digits, Adam against torch's, and the orders of the prediction
for the moves that all of them take."""

from __future__ import annotations

from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from dynamics_replay import entropy_of, replay_step
from test_simulation import TINY, Bonus, one_step, second_order_of

from entropy_theory.dynamics import Simulation, SimulationConfig, bank, grpo, log_log_slope, simulate
from entropy_theory.dynamics.optimizers import natural_move

OPTIMIZERS = ("sgd", "natural", "adam")


def gradients_by_autograd(before: torch.Tensor, tokens: torch.Tensor, advantages: list[list[float]]) -> torch.Tensor:
    """ĝ of one update, to be ascended: a replayed step of size 1."""
    (after,) = replay_step(before, tokens, advantages, 1.0)
    return after - before


def test_fisher_matrix_natural_steps() -> None:
    """Each step solves F δ = ĝ with E_p δ = 0, F by autograd's Hessian of the divergence."""
    simulation = Simulation(replace(TINY, optimizer="natural", step_size=0.01))
    for _ in range(3):
        before, tokens, advantages = one_step(simulation)
        gradient = gradients_by_autograd(before, tokens, advantages)
        for b, z in enumerate(before):
            p = z.softmax(-1)

            def divergence(x: torch.Tensor, p: torch.Tensor = p) -> torch.Tensor:
                return (p * (p.log() - x.log_softmax(-1))).sum()

            fisher = torch.autograd.functional.hessian(divergence, z)
            move = torch.linalg.pinv(fisher, hermitian=True) @ gradient[b]
            move = move - (p * move).sum()  # the null space: constant vectors
            torch.testing.assert_close(simulation.logits[b] - z, move * 0.01, rtol=1e-7, atol=1e-10)


def test_mpmath_natural_step_on_a_peaked_policy() -> None:
    z = torch.tensor([[0.0, 25.0, 1.0, -30.0]], dtype=torch.float64)
    policy = bank.policy_statistics(z)
    k, g = torch.tensor([[3, 1, 1]]), torch.tensor([[1.0, 0.5, -2.0]], dtype=torch.float64)
    bonus = torch.tensor([0.3], dtype=torch.float64)
    move = natural_move(policy, k, g, 0.25, bonus)[0].tolist()
    with mpmath.workdps(50):
        weights = [mpmath.exp(x) for x in z[0].tolist()]
        p = [w / sum(weights) for w in weights]
        entropy = -sum(x * mpmath.log(x) for x in p)
        S = [x * (entropy + mpmath.log(x)) for x in p]
        gradient = [-mpmath.mpf("0.3") * s for s in S]
        for token, coefficient in zip(k[0].tolist(), g[0].tolist(), strict=True):
            for i in range(4):
                gradient[i] += coefficient * ((i == token) - p[i])
        for i in range(4):
            assert move[i] == pytest.approx(float(gradient[i] / p[i] / 4), rel=1e-12)


@pytest.mark.parametrize("rule", ["none", "bonus"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_torch_adam(iterations: int, rule: str) -> None:
    simulation = Simulation(replace(TINY, optimizer="adam", step_size=0.05, iterations=iterations))
    bonus = 0.0
    if rule == "bonus":
        simulation.rule, bonus = Bonus(), 0.2
    z = simulation.logits.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.05)
    for _ in range(4):
        before, tokens, advantages = one_step(simulation)
        torch.testing.assert_close(before, z.detach(), rtol=1e-10, atol=1e-10)
        old = z.detach().log_softmax(-1).gather(-1, tokens)
        A = torch.tensor(advantages, dtype=torch.float64)
        for _ in range(iterations):
            adam.zero_grad()
            ratio = (z.log_softmax(-1).gather(-1, tokens) - old).exp()
            (-(ratio * A).mean(dim=-1) - bonus * entropy_of(z)).sum().backward()
            adam.step()
    torch.testing.assert_close(simulation.logits, z.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_autograd_predictions_are_those_of_the_move_taken(optimizer: str, dtype: str) -> None:
    simulation = Simulation(replace(TINY, optimizer=optimizer, dtype=dtype, step_size=0.02))
    for row in range(3):
        before, _, _ = one_step(simulation)
        z = before.double().requires_grad_()
        move = simulation.logits.double() - z.detach()
        (gradient,) = torch.autograd.grad(entropy_of(z).sum(), z)
        realised = (entropy_of(simulation.logits.double()) - entropy_of(z)).detach()
        first, second = (gradient * move).sum(-1), second_order_of(z.detach(), move)
        columns = {name: values[row] for name, values in simulation.columns.items()}
        assert columns["realised_change"] == pytest.approx(realised.mean().item(), rel=1e-9, abs=1e-14)
        assert columns["predicted_change"] == pytest.approx(first.mean().item(), rel=1e-9, abs=1e-14)
        assert columns["second_order_change"] == pytest.approx(second.mean().item(), rel=1e-9, abs=1e-14)
        error = (realised - first - second).abs().mean().item()
        assert columns["second_order_error"] == pytest.approx(error, rel=1e-6, abs=1e-14)


def test_mpmath_orders_on_peaked_policies() -> None:
    generator = torch.Generator().manual_seed(0)
    for gap in (0.1, 5.0, 20.0, 35.0):
        z = torch.randn(9, generator=generator, dtype=torch.float64)
        z[4] = z.max() + gap
        policy = bank.policy_statistics(z.unsqueeze(0))
        for move in (
            torch.randn(9, generator=generator).double() * 1e-3,
            grpo_direction(policy, 4),
            grpo_direction(policy, 0),
        ):
            _, first, second = bank.entropy_orders(policy, move.reshape(1, -1))
            with mpmath.workdps(50):
                weights = [mpmath.exp(x) for x in z.tolist()]
                p = [w / sum(weights) for w in weights]
                logs = [mpmath.log(x) for x in p]
                entropy = -sum(x * y for x, y in zip(p, logs, strict=True))
                d = [mpmath.mpf(x) for x in move.flatten().tolist()]
                mean = sum(x * y for x, y in zip(p, d, strict=True))
                one = -sum(x * (entropy + y) * m for x, y, m in zip(p, logs, d, strict=True))
                two = -sum(x * (m - mean) ** 2 * (1 + entropy + y) for x, y, m in zip(p, logs, d, strict=True)) / 2
                assert first.item() == pytest.approx(float(one), rel=1e-10)
                assert second.item() == pytest.approx(float(two), rel=1e-10)


def grpo_direction(policy: bank.PolicyStatistics, token: int) -> torch.Tensor:
    return grpo.move_of_logits(policy, torch.tensor([[token]]), torch.ones(1, 1, dtype=torch.float64), 0.1)


@pytest.mark.parametrize(
    ("start", "sizes"),
    [
        ({"policies": 200, "vocab_size": 100}, (1e-3, 3e-3, 1e-2, 3e-2)),
        (
            {"policies": 3, "vocab_size": 151_936, "logit_scale": 3.0, "correct_share": 0.4, "group_size": 8},
            (1e-3, 1e-2, 1e-1),
        ),
        ({"policies": 100, "vocab_size": 20, "optimizer": "natural"}, (1e-4, 3e-4, 1e-3)),
        ({"policies": 100, "vocab_size": 20, "optimizer": "adam"}, (1e-4, 3e-4, 1e-3)),
    ],
    ids=["toy", "V=151936", "natural", "adam"],
)
def test_errors_fall_with_the_step_size_at_slopes_two_and_three(start: dict[str, float], sizes) -> None:
    """The simulator's own records of one step from the same policies and samples."""
    config = SimulationConfig(steps=1, **start)  # type: ignore[arg-type]
    records = [simulate(replace(config, step_size=size)).steps for size in sizes]
    first, second = ([float(r[name][0]) for r in records] for name in ("absolute_error", "second_order_error"))
    assert log_log_slope(np.array(sizes), first)[0] == pytest.approx(2.0, abs=0.05)
    assert log_log_slope(np.array(sizes), second)[0] == pytest.approx(3.0, abs=0.05)
