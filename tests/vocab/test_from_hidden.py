"""Statistics from hidden states: float64 from materialised logits → in tiles, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vocab_oracles import FIELDS, autograd

from entropy_theory.vocab import from_hidden, token_statistics, token_statistics_from_hidden


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions, none of which divides its dimension."""
    monkeypatch.setitem(from_hidden.TILE_BYTES, "cpu", 4 * 7 * 300)
    monkeypatch.setitem(from_hidden.TILE_ROWS, "cpu", 7)


def model(rows: tuple[int, ...], d: int, V: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(V)
    hidden = torch.randn(*rows, d, generator=generator, dtype=torch.float64).to(dtype)
    matrix = (torch.randn(V, d, generator=generator, dtype=torch.float64) * 2 / d**0.5).to(dtype)
    bias = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, matrix, bias, torch.randint(0, V, rows, generator=generator)


def materialised(hidden: Tensor, matrix: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = hidden @ matrix.T
    logits = logits if bias is None else logits + bias
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if softcap is None else softcap * torch.tanh(wide / softcap)


@pytest.mark.parametrize("impl", ["eager", "fused-cpu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("with_bias", "softcap"), [(False, None), (True, None), (True, 5.0)])
def test_materialised_logits(impl: str, dtype: torch.dtype, with_bias: bool, softcap: float | None) -> None:
    hidden, matrix, bias, tokens = model((3, 5), 16, 1009, dtype)
    options = {"second_order": True, "temperature": 0.9, "impl": impl}
    stats = token_statistics_from_hidden(
        hidden, matrix, tokens, bias=bias if with_bias else None, softcap=softcap, **options
    )
    assert stats.impl == impl
    expected = token_statistics(materialised(hidden, matrix, bias if with_bias else None, softcap), tokens, **options)
    # The same product of matrices in other tiles: another order of sums over d, a rounding of each logit.
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    for name in FIELDS:
        scale = getattr(expected, name).abs().amax()
        assert getattr(stats, name).shape == (3, 5)
        torch.testing.assert_close(
            getattr(stats, name), getattr(expected, name), rtol=tolerance, atol=float(scale) * tolerance
        )


@pytest.mark.parametrize("impl", ["eager", "fused-cpu"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_finite_differences(impl: str, softcap: float | None) -> None:
    hidden, matrix, bias, tokens = model((2, 5), 3, 11, torch.float64)
    inputs = [x.requires_grad_() for x in (hidden, matrix, bias)]

    def both(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        stats = token_statistics_from_hidden(h, w, tokens, bias=b, softcap=softcap, temperature=0.8, impl=impl)
        return stats.log_probs, stats.entropy

    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float64_autograd(dtype: torch.dtype) -> None:
    hidden, matrix, _, tokens = model((20,), 16, 1009, dtype)
    g, h = torch.linspace(-1, 1, 20), torch.linspace(1, -0.5, 20)
    inputs = [x.requires_grad_() for x in (hidden, matrix)]
    stats = token_statistics_from_hidden(*inputs, tokens, impl="fused-cpu")
    gradients = torch.autograd.grad((g * stats.log_probs).sum() + (h * stats.entropy).sum(), inputs)
    wide = [x.detach().double() for x in inputs]
    for_logits = autograd(wide[0] @ wide[1].T, tokens, 1.0, g, h)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # bf16 logits and their bf16 gradient
    for gradient, expected in zip(gradients, (for_logits @ wide[1], for_logits.T @ wide[0]), strict=True):
        assert gradient.dtype == dtype
        assert float((gradient.double() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["eager", "fused-cpu"])
def test_soft_caps_of_16_bit_heads_are_trls(impl: str, dtype: torch.dtype) -> None:
    """TRL rounds the product to 16 bits and caps it in float32; so the first importance ratio is 1."""
    trl = pytest.importorskip("trl.kernels.chunked_logprob", reason="needs a TRL that scores hidden states")
    generator = torch.Generator().manual_seed(0)
    # multiples of 1/8: products and their sums are exact in float32, whatever their order, and rounded once
    hidden, matrix = ((torch.randint(-8, 9, (n, 16), generator=generator) / 8).to(dtype) for n in (9, 4100))
    hidden, matrix = (4 * hidden).requires_grad_(), matrix.requires_grad_()
    tokens = torch.randint(0, 4100, (9,), generator=generator)
    theirs = trl.ChunkedLogProbFunction.apply(hidden, matrix, None, tokens, 1.0, 1024, 6.0, 1.0, ("entropy",))
    ours = token_statistics_from_hidden(hidden, matrix, tokens, softcap=6.0, impl=impl)
    # Σ e^z over 4,100 float32 terms in other orders and another exponential: 2e-6, as for uncapped logits
    torch.testing.assert_close(ours.log_probs, theirs[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(ours.entropy, theirs[1], rtol=2e-6, atol=2e-6)
    gradients = [torch.autograd.grad(log_probs.sum(), (hidden, matrix)) for log_probs in (ours.log_probs, theirs[0])]
    for mine, other in zip(*gradients, strict=True):
        # each tile's gradient is rounded to 16 bits before it is multiplied, on both sides
        assert float((mine - other).float().norm() / other.float().norm()) < torch.finfo(dtype).eps


def test_only_what_is_asked_for_receives_a_gradient() -> None:
    hidden, matrix, bias, tokens = model((4,), 6, 40, torch.float32)
    hidden.requires_grad_()
    token_statistics_from_hidden(hidden, matrix, tokens, bias=bias).entropy.sum().backward()
    assert hidden.grad is not None
    assert matrix.grad is None


def test_empty_input() -> None:
    stats = token_statistics_from_hidden(torch.zeros(0, 4), torch.zeros(9, 4), torch.zeros(0, dtype=torch.int64))
    assert stats.log_probs.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_matrix": torch.zeros(9, 5)}, r"output_matrix: expected shape \(V, 4\)"),
        ({"output_matrix": torch.zeros(9, 4, dtype=torch.float64)}, "output_matrix: expected torch.float32"),
        ({"bias": torch.zeros(8)}, r"bias: expected shape \(9,\)"),
        ({"softcap": 0.0}, r"softcap: expected a number in \[1e-06, 1e\+06\], received 0.0"),
        ({"softcap": 1e300}, "softcap: expected a number in"),
        ({"temperature": -1.0}, "temperature"),
        ({"tokens": torch.tensor([0, 9])}, r"tokens: expected ids in \[0, 9\), received 9"),
        ({"tokens": torch.tensor([0])}, r"tokens: expected shape \(2,\)"),
        ({"impl": "fastest"}, "impl: expected one of"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    good = {"hidden": torch.zeros(2, 4), "output_matrix": torch.zeros(9, 4), "tokens": torch.tensor([0, 1])}
    call = getattr(token_statistics_from_hidden, "__wrapped__", token_statistics_from_hidden)
    with pytest.raises(ValueError, match=message):
        call(**(good | change))
