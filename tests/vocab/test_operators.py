"""The custom operators: torch's own checks, compiled and exported programs, and the refusal of second derivatives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from compiled_programs import from_hidden, hidden_inputs, loss_of
from torch import Tensor
from vocab_oracles import llm_like

from entropy_theory.vocab import TokenStatistics, statistics, token_statistics, token_statistics_from_hidden


@pytest.mark.parametrize("impl", ["eager", "fused-cpu"])
def test_torchs_own_checks(impl: str) -> None:
    """Schema, fake implementation and autograd registration, with and without the second order."""
    logits, tokens = llm_like(5, 60)
    for second_order in (False, True):
        arguments = (logits.double().requires_grad_(), tokens, 0.7, second_order, impl)
        torch.library.opcheck(statistics._statistics, arguments)


def test_compiled_programs() -> None:
    """In a process of its own: the run-time type checker of the tests cannot be compiled."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(here / "compiled_programs.py")],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_exported() -> None:
    class Scores(torch.nn.Module):
        def forward(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            stats = token_statistics(logits, tokens, impl="fused-cpu")
            return stats.entropy, stats.centered_discriminant

    logits, tokens = llm_like(8, 3001)
    program = torch.export.export(Scores(), (logits, tokens)).module()
    for ours, plain in zip(program(logits, tokens), Scores()(logits, tokens), strict=True):
        assert torch.equal(ours, plain)
    with pytest.raises(ValueError, match=r"tokens: expected ids in \[0, 3001\), received 3001"):
        program(logits, tokens.clone().fill_(3001))  # what depends on values is checked when the program runs


@pytest.mark.parametrize("case", ["logits, eager", "logits, fused-cpu", "hidden states"])
def test_a_second_derivative_is_an_error_and_never_a_constant(case: str) -> None:
    inputs = hidden_inputs() if case == "hidden states" else llm_like(6, 200)
    leaf = inputs[0].requires_grad_()
    call: Callable[..., TokenStatistics] = from_hidden
    if case != "hidden states":
        impl = case.removeprefix("logits, ")
        call = lambda *given: token_statistics(*given, impl=impl)  # noqa: E731
    for statistic in ("log_probs", "entropy"):
        (gradient,) = torch.autograd.grad(getattr(call(*inputs), statistic).sum(), leaf, create_graph=True)
        penalty = gradient.square().sum() + leaf.square().sum()  # the second term alone has a gradient
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(penalty, leaf)


@pytest.mark.parametrize("impl", ["eager", "fused-cpu"])
@pytest.mark.parametrize("how", ["jvp", "dual numbers", "jvp of rows in a batch"])
def test_forward_mode(impl: str, how: str) -> None:
    """The tangents of log p_y and H are those of torch's own operations; a constant's zeros would not be."""
    logits, tokens = llm_like(6, 200)
    logits, direction = logits.double(), torch.randn(6, 200, dtype=torch.float64, generator=torch.manual_seed(0))
    logits[2, 7] = -torch.inf
    tokens[2] = 8

    def plain(z: Tensor) -> tuple[Tensor, Tensor]:
        p, log_p = z.div(0.7).softmax(-1), z.div(0.7).log_softmax(-1)
        return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(p * log_p.clamp(min=-1e9)).sum(-1)

    def ours(z: Tensor) -> tuple[Tensor, Tensor]:
        stats = token_statistics(z, tokens, temperature=0.7, impl=impl)
        return stats.log_probs, stats.entropy

    if how == "dual numbers":
        with forward_ad.dual_level():
            tangents = [
                forward_ad.unpack_dual(value).tangent for value in ours(forward_ad.make_dual(logits, direction))
            ]
    elif how == "jvp":
        tangents = torch.func.jvp(ours, (logits,), (direction,))[1]
    else:
        double = lambda scale: ours(logits + scale * direction)  # noqa: E731
        tangents = torch.func.jvp(
            double, (torch.zeros((), dtype=torch.float64),), (torch.ones((), dtype=torch.float64),)
        )[1]
    expected = torch.func.jvp(plain, (logits,), (direction,))[1]
    for one, other in zip(tangents, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)  # sums of 200 terms, in another order


def test_forward_mode_where_it_would_be_lost() -> None:
    logits, tokens = llm_like(4, 60)
    hidden, matrix = (value.detach() for value in hidden_inputs()[:2])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits.clone().requires_grad_(), torch.ones_like(logits))
        with pytest.raises(RuntimeError, match="no input may require a gradient"):
            token_statistics(dual, tokens)
        for inputs in (
            (forward_ad.make_dual(hidden, torch.ones_like(hidden)), matrix),
            (hidden, forward_ad.make_dual(matrix, torch.ones_like(matrix))),
        ):
            with pytest.raises(RuntimeError, match="only token_statistics can be differentiated in forward mode"):
                token_statistics_from_hidden(*inputs, torch.zeros(hidden.shape[:-1], dtype=torch.long))


@pytest.mark.parametrize("impl", ["eager", "fused-cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_logits_masked_with_the_lowest_number(impl: str, dtype: torch.dtype) -> None:
    """As −inf: probability zero, gradient zero; 0 · (−3e38) and its overflow must not come up."""
    logits, tokens = llm_like(4, 300)
    masked = logits.to(dtype)
    masked[:, 200:] = torch.finfo(dtype).min
    masked[3, :200] = -50.0  # a row whose other logits are low, too
    tokens = tokens % 200
    results = []
    for value in (masked, masked.masked_fill(masked == torch.finfo(dtype).min, -torch.inf)):
        leaf = value.clone().requires_grad_()
        stats = token_statistics(leaf, tokens, temperature=0.5, second_order=True, impl=impl)
        (gradient,) = torch.autograd.grad(loss_of(stats), leaf)
        results.append((*(getattr(stats, name).detach() for name in statistics.FIELDS), gradient))
    for low, infinite in zip(*results, strict=True):
        assert torch.isfinite(low).all()
        assert torch.equal(low, infinite)


@pytest.mark.parametrize("impl", ["eager", "fused-cpu"])
@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures(impl: str, temperature: float) -> None:
    """T → 0 leaves the maximum alone; T → ∞ gives H = log V, S_c → 0. Values finite, and so is the gradient."""
    logits, tokens = llm_like(6, 500)
    leaf = logits.requires_grad_()
    stats = token_statistics(leaf, tokens, temperature=temperature, second_order=True, impl=impl)
    (gradient,) = torch.autograd.grad(loss_of(stats), leaf)
    assert torch.isfinite(gradient).all()
    for name in (*statistics.FIELDS, *statistics.SECOND_ORDER_FIELDS):
        assert torch.isfinite(getattr(stats, name)).all(), name
    expected = torch.full((6,), 500.0 if temperature > 1 else 1.0).log()
    torch.testing.assert_close(stats.entropy.detach(), expected, rtol=1e-6, atol=1e-9)


def test_numpys_numbers_are_temperatures() -> None:
    logits, tokens = llm_like(3, 20)
    plain = getattr(token_statistics, "__wrapped__", token_statistics)
    for kind in (np.float64, np.float32, np.int64):
        assert torch.equal(
            plain(logits, tokens, temperature=kind(2)).entropy, plain(logits, tokens, temperature=2).entropy
        )


@pytest.mark.parametrize("temperature", [1e-46, 1e-7, 2e6, float("nan"), 0, "1", True])
def test_temperatures_out_of_range(temperature: object) -> None:
    for call, inputs in ((token_statistics, llm_like(2, 9)), (token_statistics_from_hidden, hidden_inputs())):
        plain = getattr(call, "__wrapped__", call)
        with pytest.raises(ValueError, match=r"temperature: expected a number in \[1e-06, 1e\+06\]"):
            plain(*inputs, temperature=temperature)
