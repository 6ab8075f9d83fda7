"""The compiled step against many digits, against the torch path, and against itself on other threads and shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import oracles
import pytest
import torch
from mpmath import mp
from numba import njit
from scipy import stats
from step_checks import coefficients_of, equal_to_many_digits, equal_to_the_torch_path, update_of

from entropy_theory.control.rules.clip_bv import ClipB
from entropy_theory.control.rules.none import NoControl
from entropy_theory.dynamics import Simulation, SimulationConfig, bank, fused, log_log_slope, simulate, starts
from entropy_theory.dynamics.draws import Draw, policy_uniforms
from entropy_theory.dynamics.fused import FusedPolicies
from entropy_theory.dynamics.kernels import arithmetic


@pytest.mark.parametrize("gap", [0.3, 5.0, 20.0, 35.0])
@pytest.mark.parametrize(
    ("kind", "drawn"),
    [
        *((kind, (3, 5, 3, 7, 5, 0)) for kind in ("centred", "dropped", "ones")),
        ("ones", (3,) * 6),  # its move, Σ s g (1 − p), is tiny
    ],
)
def test_mpmath_step_on_peaked_policies(gap: float, kind: str, drawn: tuple[int, ...]) -> None:
    equal_to_many_digits(FusedPolicies, gap, kind, drawn)


CASES = [
    ("gaussian", 2, 0.1),
    ("gaussian", 3, 0.1),
    ("gaussian", 100, 0.1),
    ("gaussian", 256, 0.1),
    ("gaussian", 257, 0.1),
    ("gaussian", 1000, 30.0),  # far moves
    ("forking", 600, 0.1),
    ("uniform", 50, 0.1),
    ("ties", 50, 4.0),
    ("offset", 300, 0.1),
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["centred", "dropped", "ones", "bonus"])
@pytest.mark.parametrize(("start", "vocab_size", "step"), CASES)
def test_equal_to_the_torch_path(dtype: str, kind: str, start: str, vocab_size: int, step: float) -> None:
    equal_to_the_torch_path(FusedPolicies, dtype, kind, start, vocab_size, step, rows=60)


def test_not_measuring_moves_alike() -> None:
    config = SimulationConfig(policies=9, vocab_size=300)
    z = config.initial_logits()
    policies = FusedPolicies(config, range(9))
    for kind in ("centred", "ones"):
        update = update_of(coefficients_of(kind, (9, 16)), 0.1)
        moved = []
        for measure in (True, False):
            logits = z.clone()
            tokens = policies.read(logits, z > 1, 0, None, None, False).tokens
            changes = policies.move(logits, tokens, update, 1, measure=measure)
            assert (changes is None) != measure
            moved.append(logits)
        assert torch.equal(*moved)


@pytest.mark.parametrize("vocab_size", [5, 9, 255, 700])
def test_samples_follow_the_policy(vocab_size: int) -> None:
    n = 60_000
    config = SimulationConfig(policies=1, vocab_size=vocab_size, group_size=n)
    z = starts.gaussian_logits(1, vocab_size, 1.0, 3)
    z[0, 1] = -800.0  # never drawn
    tokens = FusedPolicies(config, range(1)).read(z, z > 1, 0, None, None, False).tokens
    probs = bank.policy_statistics(z).probs[0].numpy()
    observed = torch.bincount(tokens[0], minlength=vocab_size).numpy()
    assert observed[1] == 0
    kept = np.arange(vocab_size) != 1
    assert stats.chisquare(observed[kept], probs[kept] / probs[kept].sum() * n).pvalue > 1e-3
    uniforms = policy_uniforms(0, Draw.TOKENS, 0, range(1), n)
    assert torch.equal(tokens, bank.sample_tokens(torch.from_numpy(probs)[None], uniforms))


@njit
def expm1(number: float) -> float:
    return arithmetic.expm1(number)


def test_exponential_to_the_last_place() -> None:
    """e^x − 1 in many digits, on both sides of the seams of its range reduction; 4e-16: two last places."""
    for number in (1e-300, 1e-17, -1e-9, 0.3, -0.3465, 0.3465, 0.3466, -0.3466, -0.5, 1.0, -1.0, 5.5, -30.0):
        assert oracles.relative_error(expm1(number), mp.expm1(mp.mpf(number))) < 4e-16, number


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 150, 299])
def test_logits_that_are_not_finite_are_seen(wrong: float, place: int) -> None:
    config = SimulationConfig(policies=4, vocab_size=300, steps=3)
    for rule in ("none", "clip-b"):
        simulation = Simulation(replace(config, rule=rule), impl="fused-cpu")
        simulation.logits[2, place] = wrong
        with pytest.raises(ValueError, match="logits: expected numbers in the range of float64, received NaN or inf"):
            simulation.step()
        simulation = Simulation(replace(config, rule=rule), impl="fused-cpu")
        simulation.step()
        simulation.logits[2, place] = wrong
        with pytest.raises(ValueError, match="step_size: expected steps that keep the logits in the range of float64"):
            simulation.step()


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(fused, "LEAST_TURN", 1)
    monkeypatch.setattr(bank, "SMALL", 0)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "rule", ["none", "clip-b(mu=0.5)", "clip-b(drop_fraction=0.1)", "entropy-bonus(coefficient=0.1)"]
)
def test_threads_do_not_change_a_bit(rule: str, three_threads: None) -> None:
    config = SimulationConfig(policies=50, vocab_size=300, steps=4, rule=rule)
    runs = []
    for threads in (3, 1):
        torch.set_num_threads(threads)
        simulation = Simulation(config, impl="fused-cpu")
        for _ in range(4):
            simulation.step()
        runs.append(simulation)
    assert torch.equal(runs[0].logits, runs[1].logits)
    for name, values in runs[0].columns.items():
        assert np.array_equal(values, runs[1].columns[name]), name


def test_a_share_is_a_part_of_the_whole() -> None:
    config = SimulationConfig(policies=20, vocab_size=300)
    z = config.initial_logits()
    whole = FusedPolicies(config, range(20)).read(z, z > 1, 2, None, None, False)
    part = FusedPolicies(config, range(13, 17)).read(z[13:17].clone(), z[13:17] > 1, 2, None, None, False)
    assert torch.equal(part.tokens, whole.tokens[13:17])
    assert torch.equal(part.scores.log_probs, whole.scores.log_probs[13:17])


class TwoSweeps(NoControl):
    """No control under another type, which takes the way of rules that have no compiled step."""


class TwoSweepsClipB(ClipB):
    """Clip_B likewise."""


CLIPPED = [
    "clip-b(mu=0)",
    "clip-b(mu=0.2, denominator='valid')",
    "clip-b(mu=0.7, side='upper', advantages='positive')",
    "clip-b(mu=1, side='both', advantages='all')",  # also where A = 0, which lowers the denominator
]


@pytest.mark.parametrize("advantage", ["std", "mean"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rule", ["none", *CLIPPED])
def test_a_whole_step_and_two_sweeps_are_the_same(rule: str, advantage: str, dtype: str) -> None:
    config = SimulationConfig(
        policies=80, vocab_size=120, steps=5, rule=rule, advantage=advantage, dtype=dtype, step_size=2.0
    )
    alone, together = (Simulation(config, impl="fused-cpu") for _ in range(2))
    parameters = {f.name: getattr(alone.rule, f.name) for f in fields(alone.rule)}
    together.rule = TwoSweepsClipB(**parameters) if rule != "none" else TwoSweeps()
    for _ in range(5):
        alone.step()
        together.step()
    assert (alone.columns["dropped_share"].max() > 0) == (rule != "none")
    # advantages are computed from counts there and from sums here: their last bit
    torch.testing.assert_close(alone.logits, together.logits, rtol=1e-14 if dtype == "float64" else 2e-7, atol=1e-15)
    for name, values in alone.columns.items():
        np.testing.assert_allclose(values, together.columns[name], rtol=1e-11, atol=1e-17, err_msg=name)


def test_equal_scores_drop_nothing() -> None:
    """A deviation of S below STD_FLOOR is rounding; above it, half of the tokens with A < 0 are outliers for mu = 0."""
    config = SimulationConfig(policies=20, vocab_size=7, steps=1, initialisation="uniform", rule="clip-b(mu=0)")
    for noise, dropped in ((1e-13, False), (1e-9, True)):
        simulation = Simulation(config, impl="fused-cpu")
        simulation.logits += noise * starts.gaussian_logits(20, 7, 1.0, 0)
        simulation.step()
        assert (simulation.columns["dropped_share"][0] > 0) == dropped


@pytest.mark.parametrize("rule", ["none", "clip-b(mu=0.5)"])
def test_errors_have_their_orders(rule: str) -> None:
    """The first order errs by η², the second by η³, over steps as small as their round-off allows."""
    sizes = [0.4, 0.2, 0.1, 0.05, 0.025]
    errors = {"absolute_error": 2.0, "second_order_error": 3.0}
    config = SimulationConfig(policies=400, vocab_size=60, steps=1, rule=rule)
    columns = []
    for size in sizes:
        simulation = Simulation(replace(config, step_size=size), impl="fused-cpu")
        simulation.step()
        columns.append(simulation.columns)
    for name, order in errors.items():
        assert log_log_slope(sizes, [column[name][0] for column in columns])[0] == pytest.approx(order, abs=0.05), name


def test_predictions_have_slope_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entropy_theory.dynamics.implementations.SMALL", 0)
    result = simulate(SimulationConfig(policies=200, vocab_size=50, steps=20, step_size=0.05))
    assert result.summary["slope"] == pytest.approx(1.0, abs=0.01)


def test_a_model_vocabulary_in_both_implementations() -> None:
    config = SimulationConfig(
        policies=4,
        vocab_size=151_936,
        steps=3,
        dtype="float32",
        logit_scale=4.0,
        correct_share=0.5,
        rule="clip-b(drop_fraction=0.1)",
    )
    compiled, reference = (Simulation(config, impl=impl) for impl in ("fused-cpu", "eager"))
    for _ in range(3):
        compiled.step()
        reference.step()
    torch.testing.assert_close(compiled.logits, reference.logits, rtol=2e-7, atol=0)  # one unit in the last place
    for name, values in compiled.columns.items():
        np.testing.assert_allclose(values, reference.columns[name], rtol=1e-7, atol=1e-12, err_msg=name)
    assert compiled.columns["dropped_share"].max() > 0
