"""Both implementations of a simulation's step, for the tests that hold each of them."""

from __future__ import annotations

import pytest

from entropy_theory.dynamics import Simulation, SimulationConfig


@pytest.fixture(params=["eager", "fused-cpu"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation that runs of any size take; what the compiled loops cannot do, torch does in both."""
    smallest = 0 if request.param == "fused-cpu" else 1 << 62
    monkeypatch.setattr("entropy_theory.dynamics.implementations.SMALL", smallest)
    assert Simulation(SimulationConfig(policies=2, vocab_size=3, steps=1)).impl == request.param
    return request.param
