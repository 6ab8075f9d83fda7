"""Checks of the Triton steps under its interpreter; a process of its own, because the switch is read at import."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from step_checks import coefficients_of, equal_to_many_digits, equal_to_the_torch_path, update_of

from entropy_theory.dynamics import Simulation, SimulationConfig, fused_triton
from entropy_theory.dynamics.bank import PolicyStatistics
from entropy_theory.dynamics.fused_triton import TritonPolicies

KINDS = ("centred", "dropped", "ones", "bonus")
CASES = [("gaussian", 5, 0.1), ("forking", 100, 0.1), ("gaussian", 70, 30.0), ("offset", 33, 0.1), ("ties", 50, 4.0)]
"""Starts, vocabularies and step sizes; with tiles of 16, two at a time, of one tile to seven. 30: far moves; 4: large
near ones."""

RULES = [
    ("none", 1, "float64", 0.1),
    ("none", 1, "float32", 30.0),
    ("none", 2, "float64", 0.5),
    ("clip-b(mu=0.5)", 2, "float32", 0.5),
    ("entropy-bonus(coefficient=0.1)", 1, "float64", 0.5),
]


def same_runs(config: SimulationConfig, steps: int) -> None:
    """Hold the logits and records of some steps against the torch path."""
    compiled, reference = (Simulation(config, impl=impl) for impl in ("triton", "eager"))
    assert compiled.impl == "triton"
    for _ in range(steps):
        compiled.step()
        reference.step()
    wide = config.dtype == "float64"  # the sums differ in their last bits; a float32 logit may be rounded otherwise
    torch.testing.assert_close(compiled.logits, reference.logits, rtol=1e-14 if wide else 2e-7, atol=1e-14)
    for name, values in compiled.columns.items():
        # errors are differences of changes that are exact to 1e-16 of E_p[|δ| (1 + |u|)]
        atol = 1e-14 if wide else 1e-12
        np.testing.assert_allclose(values, reference.columns[name], rtol=1e-11 if wide else 1e-7, atol=atol)


def refuses(config: SimulationConfig) -> None:
    """See that a logit that is not finite, in any block, ends the run."""
    for wrong, place in ((torch.nan, 0), (torch.inf, config.vocab_size // 2), (-torch.inf, config.vocab_size - 1)):
        simulation = Simulation(config, impl="triton")
        simulation.logits[1, place] = wrong
        with pytest.raises(ValueError, match="logits: expected numbers in the range of"):
            simulation.step()


def shares_and_observers(device: str, vocab_size: int) -> None:
    """Read a share as a part of the whole, without measuring, and under an observer."""
    config = SimulationConfig(policies=8, vocab_size=vocab_size, group_size=5, seed=3)  # fewer than a power of two
    z = config.initial_logits().to(device)
    z[:, 1] = -800.0  # never drawn
    whole = TritonPolicies(config, range(8), z.device).read(z, z > 1, 2, None, None, False)
    assert (whole.tokens != 1).all()
    for kind in KINDS[:3]:
        moved = []
        for measure in (True, False):
            part, policies = z[3:5].clone(), TritonPolicies(config, range(3, 5), z.device)
            reading = policies.read(part, part > 1, 2, None, None, False)
            assert torch.equal(reading.tokens, whole.tokens[3:5])
            assert torch.equal(reading.scores.log_probs, whole.scores.log_probs[3:5])
            update = update_of(coefficients_of(kind, (2, 5)).to(device), 0.1)
            assert (policies.move(part, reading.tokens, update, 1, measure=measure) is None) != measure
            moved.append(part)
        assert torch.equal(*moved)

    seen: list[tuple[slice, torch.Tensor]] = []

    def observe(rows: slice, policy: PolicyStatistics, tokens: torch.Tensor) -> None:
        assert policy.probs.shape == (rows.stop - rows.start, vocab_size)
        seen.append((rows, tokens))

    small = replace(config, policies=4, block_elements=2 * vocab_size, device=device)
    Simulation(small, impl="triton").step(observe)
    assert [rows for rows, _ in seen] == [slice(0, 2), slice(2, 4)]


def main(device: str = "cpu", size: int = 100) -> None:
    """Check everything; on a GPU with vocabularies of `size` tokens besides."""
    rows = 3
    if device == "cpu":
        fused_triton.TILE, fused_triton.TILES = 16, 2  # several blocks of a small vocabulary
    device_of = torch.device(device)

    def make(config: SimulationConfig, share: range) -> TritonPolicies:
        return TritonPolicies(config, share, device_of)

    for gap in (0.3, 35.0):
        for kind, drawn in (*((kind, (3, 5, 3, 7, 5, 0)) for kind in KINDS[:3]), ("ones", (3,) * 6)):
            equal_to_many_digits(make, gap, kind, drawn, device)
    cases = CASES if device == "cpu" else [*CASES, ("gaussian", size, 0.1), ("forking", size, 0.1)]
    for dtype in ("float64", "float32"):
        for kind in KINDS:
            for start, vocab_size, step in cases:
                equal_to_the_torch_path(make, dtype, kind, start, vocab_size, step, rows, device)
    for rule, iterations, dtype, step_size in RULES:
        config = SimulationConfig(
            policies=5, vocab_size=size, steps=2, rule=rule, iterations=iterations, dtype=dtype, step_size=step_size
        )
        same_runs(replace(config, device=device, correct_share=0.3, advantage="mean" if iterations == 2 else "std"), 2)
    for rule in ("none", "clip-b"):
        refuses(SimulationConfig(policies=2, vocab_size=size, steps=1, rule=rule, device=device))
    shares_and_observers(device, size)
    print("agrees")


if __name__ == "__main__":
    main()
