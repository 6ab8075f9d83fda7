"""The simulation against an explicit replay with autograd, and against itself in other block sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from dynamics_replay import advantages_of, clipped, discriminants_of, entropy_of, plain, replay_step

from entropy_theory.control import Rule, TokenBatch
from entropy_theory.control import rule as build_rule
from entropy_theory.dynamics import Simulation, SimulationConfig, simulate
from entropy_theory.dynamics.draws import Draw, generator, policy_uniforms
from entropy_theory.vocab import token_statistics

pytestmark = pytest.mark.usefixtures("implementation")


TINY = SimulationConfig(policies=5, vocab_size=7, steps=3, group_size=6, step_size=0.8, correct_share=0.4, seed=3)


def one_step(simulation: Simulation) -> tuple[torch.Tensor, torch.Tensor, list[list[float]]]:
    """Do a step; return the logits before it, the tokens it sampled and their advantages by the replay's account.

    The tokens come from the distribution and the counter-based numbers: an observer would keep compiled code from
    taking a whole step.
    """
    before, config = simulation.logits.clone(), simulation.config
    uniforms = policy_uniforms(config.seed, Draw.TOKENS, simulation.completed, simulation.share, config.group_size)
    below = before.double().softmax(-1).cumsum(-1).unsqueeze(1) <= uniforms.unsqueeze(-1)
    tokens = below.sum(-1).clamp(max=config.vocab_size - 1)
    simulation.step()
    rewards = simulation.correct.gather(-1, tokens).double().tolist()
    return before, tokens, [advantages_of(row, simulation.config.advantage) for row in rewards]


@pytest.mark.parametrize("advantage", ["std", "mean"])
def test_autograd_every_step_is_the_gradient_step(advantage: str) -> None:
    simulation = Simulation(replace(TINY, advantage=advantage))
    for _ in range(3):
        before, tokens, advantages = one_step(simulation)
        (after,) = replay_step(before, tokens, advantages, 0.8)
        torch.testing.assert_close(simulation.logits, after, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("rule", "surrogate"), [("none", plain), ("ppo-clip", clipped)])
def test_autograd_importance_ratios(rule: str, surrogate) -> None:
    simulation = Simulation(replace(TINY, iterations=4, rule=rule, step_size=3.0, seed=5))
    for _ in range(3):
        before, tokens, advantages = one_step(simulation)
        after = replay_step(before, tokens, advantages, 3.0, iterations=4, surrogate=surrogate)
        torch.testing.assert_close(simulation.logits, after[-1], rtol=1e-10, atol=1e-11)
    ratios = simulation.columns["ratio_deviation"].reshape(3, 4)
    assert (ratios[:, 0] == 0).all()
    assert (ratios[:, 1:] > 0.01).all()
    dropped = simulation.columns["dropped_share"].reshape(3, 4)
    assert (dropped[:, 0] == 0).all()
    assert (dropped[:, 1:].max() > 0.05) == (rule == "ppo-clip")


def test_autograd_clip_b_is_fixed_once_per_batch() -> None:
    simulation = Simulation(replace(TINY, policies=12, iterations=3, rule="clip-b(mu=0.6)"))
    for step in range(3):
        before, tokens, advantages = one_step(simulation)
        S, _ = discriminants_of(before, tokens)
        A = torch.tensor(advantages)
        keep = ~((A < 0) & (S - S.mean() < -0.6 * S.std(correction=0)))
        assert 0 < int((~keep).sum()) < 40
        after = replay_step(before, tokens, advantages, 0.8, iterations=3, keep=keep, counted=int(keep.sum()))
        torch.testing.assert_close(simulation.logits, after[-1], rtol=1e-12, atol=1e-13)
        shares = simulation.columns["dropped_share"][3 * step : 3 * step + 3]
        assert shares.tolist() == [float((~keep).sum()) / keep.numel()] * 3


@pytest.mark.parametrize(
    "spec",
    [
        "clip-b(mu=0.5)",
        "clip-b(mu=0.5, denominator='valid', advantages='all', side='both')",
        "clip-v(mu=0.5, max_fraction=None)",
        "clip-v(mu=0.5)",
        "random-mask(fraction=0.3)",
        "random-mask(match='clip-b(mu=0.5)')",
        "clip-b(mu=0.5)|random-mask(fraction=0.2)",
        "clip-b(mu=0.5)|ppo-clip",
    ],
)
def test_rules_drop_what_control_says(spec: str) -> None:
    config = replace(TINY, policies=40, steps=1, rule=spec)
    simulation = Simulation(config)
    before, tokens, advantages = one_step(simulation)
    twin = token_statistics(before.unsqueeze(1).expand(-1, 6, -1), tokens)
    batch = TokenBatch(
        twin.log_probs,
        twin.entropy,
        torch.tensor(advantages),
        torch.ones_like(tokens),
        old_log_probs=twin.log_probs,
        baseline=twin.baseline,
        discriminant=twin.discriminant,
        centered_discriminant=twin.centered_discriminant,
    )
    output = build_rule(spec).apply(batch, generator=generator(config.seed, Draw.RULE, 0, 0))
    assert output.metrics["dropped"] > 0
    (after,) = replay_step(
        before, tokens, advantages, 0.8, keep=output.keep_mask, counted=int(output.denominator.item())
    )
    torch.testing.assert_close(simulation.logits, after, rtol=1e-12, atol=1e-13)
    assert simulation.columns["dropped_share"][0] == output.metrics["dropped_share"]
    for q in (1, 2, 3, 4):
        assert simulation.columns[f"quadrant_q{q}"][0] == output.metrics[f"quadrant_share_q{q}"]


@dataclass(frozen=True)
class Bonus(Rule):
    """An entropy bonus, as a rule of a user might write it."""

    name: ClassVar[str] = "bonus"
    needs: ClassVar[tuple[str, ...]] = ("sum_squared_discriminant", "rollout_log_probs", "old_entropy", "group_ids")

    def transform(self, flow, context, state):
        count = {"calls": 1 if state is None else state["calls"] + 1}
        return replace(flow, entropy_coefficients=torch.full_like(flow.coefficients, 0.2)), {}, count


def test_autograd_entropy_bonus_and_its_prediction() -> None:
    simulation = Simulation(replace(TINY, step_size=1e-4))
    simulation.rule = Bonus()
    before, tokens, advantages = one_step(simulation)
    (after,) = replay_step(before, tokens, advantages, 1e-4, entropy_bonus=0.2)
    torch.testing.assert_close(simulation.logits, after, rtol=0, atol=1e-15)
    assert simulation.columns["relative_error"][0] < 1e-3  # a wrong prediction would be off by its own size
    one_step(simulation)
    assert simulation.rule_state == {"calls": 2}


def second_order_of(z: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """½ d²/dt² of H(z + t δ) at 0, differentiated twice."""
    t = torch.zeros(len(z), 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(entropy_of(z + t * move).sum(), t, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), t)
    return curvature.squeeze(-1) / 2


def test_autograd_records() -> None:
    """Every column of a run with two iterations against the entropies and gradients of the replay."""
    simulation = Simulation(replace(TINY, iterations=2))
    before, tokens, advantages = one_step(simulation)
    A = torch.tensor(advantages)
    states = [before, *replay_step(before, tokens, advantages, 0.8, iterations=2)]
    columns = simulation.columns
    for row, (z, moved) in enumerate(pairwise(states)):
        realised = entropy_of(moved) - entropy_of(z)
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(entropy_of(leaf).sum(), leaf)
        predicted = (gradient * (moved - z)).sum(-1)
        second = second_order_of(z, moved - z)
        S, centered = discriminants_of(z, tokens)
        ratio = (z.log_softmax(-1).gather(-1, tokens) - before.log_softmax(-1).gather(-1, tokens)).exp()
        expected = {
            "step": 0,
            "iteration": row,
            "entropy_before": entropy_of(z).mean(),
            "entropy_after": entropy_of(moved).mean(),
            "realised_change": realised.mean(),
            "predicted_change": predicted.mean(),
            "absolute_error": (realised - predicted).abs().mean(),
            "relative_error": (realised - predicted).abs().mean() / realised.abs().mean(),
            "second_order_change": second.mean(),
            "second_order_error": (realised - predicted - second).abs().mean(),
            "reward": simulation.correct.gather(-1, tokens).double().mean(),
            "discriminant": S.mean(),
            "centered_discriminant": centered.mean(),
            "quadrant_q1": ((A > 0) & (centered > 0)).double().mean(),
            "quadrant_q2": ((A > 0) & (centered < 0)).double().mean(),
            "quadrant_q3": ((A < 0) & (centered > 0)).double().mean(),
            "quadrant_q4": ((A < 0) & (centered < 0)).double().mean(),
            "dropped_share": 0.0,
            "ratio_deviation": (ratio - 1).abs().mean(),
        }
        assert set(expected) == set(columns)
        for name, value in expected.items():
            assert columns[name][row] == pytest.approx(float(value), rel=1e-9, abs=1e-14), name
        places = simulation.pairs["row"] == row
        assert simulation.pairs["predicted"][places] == pytest.approx(predicted.numpy(), rel=1e-9)
        assert simulation.pairs["realised"][places] == pytest.approx(realised.numpy(), rel=1e-9)


def same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["sgd", "natural", "adam"])
def test_blocks_do_not_change_the_result(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimulationConfig(policies=70, vocab_size=33, steps=6, group_size=4, iterations=2, optimizer=optimizer)
    config = replace(config, rule="clip-b(mu=1)|random-mask(fraction=0.1)", step_size=1.0)
    whole = simulate(config)
    for elements in (1, 100, 33 * 64):
        part = simulate(replace(config, block_elements=elements))
        assert same_arrays(whole.steps, part.steps)
        assert same_arrays(whole.pairs, part.pairs)
    monkeypatch.setattr("entropy_theory.dynamics.eager.KEPT_ELEMENTS", 0)  # policies evaluated anew for the update
    again = simulate(replace(config, block_elements=500))
    assert same_arrays(whole.steps, again.steps)


def test_recording_does_not_change_the_run() -> None:
    config = SimulationConfig(policies=20, vocab_size=10, steps=8, iterations=2, rule="random-mask(fraction=0.2)")
    every, third = simulate(config), simulate(replace(config, record_every=3, pairs=30))
    assert sorted(set(third.steps["step"])) == [0, 3, 6, 7]
    chosen = np.isin(every.steps["step"], third.steps["step"])
    for name, values in third.steps.items():
        assert np.array_equal(values, every.steps[name][chosen]), name
    assert len(third.pairs["step"]) == 30
    assert len(every.pairs["step"]) == 20 * 8 * 2  # fewer than asked for: all of them


def test_float32_is_measured_as_stored() -> None:
    config = SimulationConfig(policies=50, vocab_size=50, steps=3, dtype="float32")
    simulation = Simulation(config)
    before, _, _ = one_step(simulation)
    assert simulation.logits.dtype == torch.float32
    realised = (entropy_of(simulation.logits.double()) - entropy_of(before.double())).mean().item()
    assert simulation.columns["realised_change"][0] == pytest.approx(realised, rel=1e-9, abs=1e-14)


def test_large_steps_collapse_without_nan() -> None:
    result = simulate(SimulationConfig(policies=20, vocab_size=10, steps=60, step_size=500.0))
    assert all(np.isfinite(values).all() for values in result.steps.values())
    assert result.summary["entropy_last"] < 0.1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_largest_steps_end_finite_or_in_one_line(dtype: str) -> None:
    config = SimulationConfig(policies=4, vocab_size=5, steps=3, dtype=dtype, step_size=1e9)
    assert all(np.isfinite(values).all() for values in simulate(config).steps.values())
    simulation = Simulation(config)
    object.__setattr__(simulation.config, "step_size", 1e200)  # beyond the range: as if it were not checked
    with pytest.raises(
        ValueError, match=rf"^step_size: expected steps that keep the logits in the range of {dtype}, .*"
    ):
        [simulation.step() for _ in range(3)]


def test_entropy_collapses_under_grpo_and_less_under_clip_b() -> None:
    config = SimulationConfig(policies=200, vocab_size=50, steps=200, step_size=0.5, record_every=20)
    plain_run, clip_run = simulate(config), simulate(replace(config, rule="clip-b(mu=0.5)"))
    assert plain_run.summary["entropy_last"] < 0.2 * plain_run.summary["entropy_first"]
    assert clip_run.summary["dropped_share"] > 0.01
    assert plain_run.summary["reward_last"] > 0.9
    assert plain_run.summary["slope"] == pytest.approx(1.0, abs=0.05)


def test_progress_ends_at_the_last_step() -> None:
    calls: list[tuple[int, int, str]] = []
    threads, config = torch.get_num_threads(), SimulationConfig(policies=4, vocab_size=5, steps=25)
    result = simulate(config, lambda *call: calls.append(call))
    assert torch.get_num_threads() == threads
    assert not same_arrays(result.steps, simulate(replace(config, seed=1)).steps)
    assert [done for done, _, _ in calls] == [10, 20, 25]
    assert calls[-1][1] == 25
    assert calls[-1][2].startswith("entropy ")


def test_the_batch_part_of_a_pipe_is_decided_once() -> None:
    """With several updates on a batch, a pipe with a live member keeps its mask: dropping none live changes nothing."""
    settings = {"policies": 30, "vocab_size": 12, "steps": 3, "iterations": 3, "step_size": 0.5}
    alone = simulate(SimulationConfig(rule="clip-v(drop_fraction=0.2)", **settings))
    wide = "ppo-clip(epsilon_low=100, epsilon_high=100, dual_clip=None)"
    piped = simulate(SimulationConfig(rule=f"clip-v(drop_fraction=0.2)|{wide}", **settings))
    for name in ("entropy_after", "predicted_change", "dropped_share"):
        np.testing.assert_array_equal(alone.steps[name], piped.steps[name])


@pytest.mark.parametrize("rule", ["entropy-bonus(coefficient=0.5)", "adaptive-entropy(variant='trl', target=10)"])
def test_entropy_terms_are_predicted_and_raise_entropy(rule: str) -> None:
    settings = {"policies": 40, "vocab_size": 12, "steps": 30, "step_size": 0.05, "initialisation": "forking"}
    plain, bonus = (simulate(SimulationConfig(rule=one, **settings)) for one in ("none", rule))
    assert bonus.summary["entropy_last"] > plain.summary["entropy_last"]
    np.testing.assert_allclose(bonus.steps["predicted_change"], bonus.steps["realised_change"], atol=2e-3)
