"""Which implementation takes a simulation's steps, what is refused, and what happens without Numba or Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from entropy_theory.dynamics import Simulation, SimulationConfig, VocabSimulationConfig
from entropy_theory.dynamics.implementations import choose_implementation, resolve

SMALL = SimulationConfig(policies=4, vocab_size=5, steps=2)


def test_the_choice_and_its_reason() -> None:
    assert choose_implementation(SMALL) == (
        "eager",
        "40 logits over the run: too few to pay for loading the compiled loops",
    )
    for config in (SimulationConfig(), VocabSimulationConfig()):
        assert choose_implementation(config)[0] == "fused-cpu"
    for optimizer in ("natural", "adam"):
        assert choose_implementation(replace(SimulationConfig(), optimizer=optimizer))[0] == "eager"
    assert Simulation(SMALL).impl == "eager"
    assert Simulation(SMALL, impl="fused-cpu").impl == "fused-cpu"


def test_requests_that_cannot_run_are_refused() -> None:
    with pytest.raises(ValueError, match="impl: expected one of auto, eager, fused-cpu, triton, received 'numba'"):
        resolve("numba", SMALL)
    refusal = r"impl: expected an implementation for this configuration, .* \(device cpu: Triton is for NVIDIA GPUs\)"
    with pytest.raises(ValueError, match=refusal):
        Simulation(SMALL, impl="triton")
    with pytest.raises(ValueError, match=r"impl: expected an implementation for this configuration, .*optimizer adam"):
        Simulation(replace(SMALL, optimizer="adam"), impl="fused-cpu")


def test_on_a_gpu_triton_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a configuration asks; nothing runs
    config = SimulationConfig(device="cuda")
    assert choose_implementation(config) == ("eager", "device cuda: no GPU has run 'triton' yet")
    for other, reason in (
        ({"optimizer": "adam"}, "optimizer adam: the compiled steps take sgd"),
        ({"optimizer": "natural"}, "optimizer natural: the compiled steps take sgd"),
        ({"group_size": 65}, "group_size 65: Triton takes at most 64"),
    ):
        with pytest.raises(ValueError, match=reason):
            resolve("triton", replace(config, **other))
    with pytest.raises(ValueError, match="device cuda: the compiled loops are for the CPU"):
        resolve("fused-cpu", config)


def test_without_numba_torch_takes_its_place_with_a_warning() -> None:
    code = """
import sys, warnings
sys.modules["numba"] = None  # as if it could not be imported
from entropy_theory.dynamics import Simulation, SimulationConfig
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    simulation = Simulation(SimulationConfig())
simulation.step()
print(simulation.impl, *[str(w.message) for w in caught], sep="|")
try:
    Simulation(SimulationConfig(), impl="fused-cpu")
except ImportError as error:
    print(error)

import torch
from entropy_theory.dynamics.implementations import resolve
sys.modules["triton"] = None
torch.cuda.is_available = lambda: True  # a configuration asks; nothing runs
config = SimulationConfig(device="cuda")
try:
    resolve("triton", config)
except ImportError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("eager|the simulation runs on torch, several times slower: Numba cannot be loaded (")
    assert second.startswith("impl: expected Numba for 'fused-cpu', received ")
    problem = "triton is not installed; install the extra: pip install 'entropy-theory[gpu]'"
    assert third == f"impl: expected Triton for 'triton', received {problem}"
