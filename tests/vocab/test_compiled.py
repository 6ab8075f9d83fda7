"""Token statistics inside compiled and exported programs, and what their gradient refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from entropy_theory.vocab import token_statistics, token_statistics_from_hidden

ROWS, VOCABULARY = 64, 50_000  # beyond the size from which the compiled loops run
BACKENDS = [
    "aot_eager",  # traces forward and backward, and runs the graphs as they are
    pytest.param(
        "inductor",
        marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
    ),
]


def rows(count: int = ROWS, size: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    logits = 3.0 * torch.randn(count, size, generator=generator)
    return logits, torch.randint(size, (count,), generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_program_computes_the_same(backend: str) -> None:
    """In a process of its own: the run-time shape checks of the tests cannot be traced."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(here / "compiled_program.py"), backend],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "agrees"


def test_an_exported_program_computes_the_same() -> None:
    class Model(torch.nn.Module):
        def forward(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            statistics = token_statistics(logits, tokens)
            return statistics.entropy, statistics.centered_discriminant

    exported = torch.export.export(Model(), rows()).module()
    other = rows()[0].flip(0), rows()[1]
    for expected, received in zip(Model()(*other), exported(*other), strict=True):
        assert torch.equal(expected, received)


@pytest.mark.parametrize("size", [7, VOCABULARY])
def test_a_second_derivative_raises_an_error(size: int) -> None:
    logits, tokens = rows(4, size)
    leaf = logits.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(token_statistics(leaf, tokens).entropy.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(gradient.square().sum(), leaf)


def test_a_second_derivative_from_hidden_states_raises_an_error() -> None:
    hidden, matrix = torch.randn(3, 4).requires_grad_(True), torch.randn(9, 4)
    tokens = torch.tensor([0, 3, 8])
    entropy = token_statistics_from_hidden(hidden, matrix, tokens).entropy.sum()
    (gradient,) = torch.autograd.grad(entropy, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(gradient.sum(), hidden)


@pytest.mark.parametrize("impl", ["eager", "fused-cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_masked_with_the_least_number_have_a_finite_gradient(impl: str, dtype: torch.dtype) -> None:
    logits = torch.tensor(
        [[1.0, -0.5, 0.25, torch.finfo(dtype).min], [torch.finfo(dtype).min, 2.0, 2.0, 1.0]], dtype=dtype
    )
    shorter = logits.double().masked_fill(logits == torch.finfo(dtype).min, -torch.inf)
    tokens = torch.tensor([1, 3])
    gradients = []
    for values in (logits, shorter):  # a masked token has probability zero either way
        leaf = values.clone().requires_grad_(True)
        statistics = token_statistics(leaf, tokens, impl=impl if leaf.dtype == dtype else "eager")
        (statistics.entropy.sum() + statistics.log_probs.sum()).backward()
        gradients.append(leaf.grad.double())
    assert gradients[0].isfinite().all()
    # The gradient has the dtype of the logits: half a unit in its last place, and a few of the sums'.
    torch.testing.assert_close(
        gradients[0], gradients[1], rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )
