"""Token statistics against 50-digit arithmetic, autograd and the laws of the theory."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from vocab_oracles import FIELDS, TOLERANCE, high_precision

from entropy_theory.theory import categorical
from entropy_theory.theory import discriminant as theory
from entropy_theory.vocab import token_statistics
from entropy_theory.vocab.kernels import eager


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [0.0, 3.0, 8.0, 12.0])
def test_high_precision(dtype: torch.dtype, gap: float) -> None:
    generator = torch.Generator().manual_seed(int(gap))
    logits = torch.randn(6, 50, generator=generator, dtype=torch.float64) * 2
    logits[:, 7] = logits.amax(-1) + gap + 0.1
    logits = logits.to(dtype)
    tokens = torch.tensor([7, 7, 7, 3, 4, 5])
    stats = token_statistics(logits, tokens, second_order=True)
    for row in range(6):
        expected = high_precision(logits[row].double().tolist(), int(tokens[row]))
        for name in FIELDS:
            value = float(getattr(stats, name)[row])
            assert value == pytest.approx(expected[name], rel=TOLERANCE[dtype], abs=1e-300), (name, row)


@pytest.mark.parametrize("rest", [1e-1, 1e-3, 1e-5, 1e-7])
def test_nearly_deterministic_rows_keep_their_digits(rest: float) -> None:
    # S_y and N of the argmax agree to O(1 − p): their float32 difference has no digit left where this one has six.
    logits = torch.zeros(2, 1000)
    logits[:, 0] = math.log(999 / rest)
    logits[:, 1:] += torch.linspace(-1, 1, 999)
    stats = token_statistics(logits, torch.tensor([0, 500]))
    for row, token in enumerate((0, 500)):
        expected = high_precision(logits[row].double().tolist(), token)
        for name in FIELDS[1:5]:
            assert float(getattr(stats, name)[row]) == pytest.approx(expected[name], rel=2e-6), name


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_temperature_is_that_of_the_policy(temperature: float) -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.tensor([0, 1, 2, 3])
    stats = token_statistics(logits, tokens, temperature=temperature)
    for row in range(4):
        expected = high_precision(logits[row].tolist(), row, temperature)
        assert float(stats.centered_discriminant[row]) == pytest.approx(expected["centered_discriminant"], rel=1e-12)


def test_autograd_gives_the_discriminant() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 9, 20, 30, 39])
    log_p = logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(), logits)
    stats = token_statistics(logits, tokens)
    torch.testing.assert_close(
        stats.discriminant, -gradient.gather(-1, tokens[:, None]).squeeze(-1), rtol=1e-12, atol=1e-15
    )
    assert not stats.discriminant.requires_grad


def test_the_numpy_twin_agrees() -> None:
    logits = torch.randn(3, 7, 100, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 4
    tokens = torch.randint(0, 100, (3, 7), generator=torch.Generator().manual_seed(3))
    stats = token_statistics(logits, tokens)
    z, y = logits.numpy(), tokens.numpy()
    np.testing.assert_allclose(stats.entropy, categorical.entropy(z), rtol=1e-12)
    np.testing.assert_allclose(stats.discriminant, theory.discriminant(z, y), rtol=1e-11, atol=1e-18)
    np.testing.assert_allclose(stats.baseline, theory.baseline(z), rtol=1e-11)
    np.testing.assert_allclose(stats.centered_discriminant, theory.centered_discriminant(z, y), rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("vocab_size", [2, 3, 507, 32_768, 151_936])
def test_vocabulary_sizes(vocab_size: int) -> None:
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(4)) * 3
    tokens = torch.tensor([0, vocab_size - 1, int(logits[2].argmax())])
    low, exact = token_statistics(logits, tokens), token_statistics(logits.double(), tokens)
    assert exact.entropy.dtype == torch.float64
    for name in FIELDS[:5]:
        # 1e-6: float32 rounding of d ≲ 16 inside e^d, averaged over the row.
        torch.testing.assert_close(getattr(low, name).double(), getattr(exact, name), rtol=2e-6, atol=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(17, 33, generator=torch.Generator().manual_seed(5))
    tokens = torch.randint(0, 33, (17,), generator=torch.Generator().manual_seed(6))
    whole = token_statistics(logits, tokens)
    monkeypatch.setattr(eager, "BLOCK_ELEMENTS", 100)
    parts = token_statistics(logits, tokens)
    assert torch.equal(whole.centered_discriminant, parts.centered_discriminant)


def test_strided_and_offset_logits() -> None:
    logits = torch.randn(4, 6, 20, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    tokens = torch.randint(0, 20, (6, 4), generator=torch.Generator().manual_seed(8))
    plain = token_statistics(logits.transpose(0, 1).contiguous(), tokens)
    strided = token_statistics(logits.transpose(0, 1), tokens)
    assert torch.equal(plain.discriminant, strided.discriminant)
    shifted = token_statistics(logits.transpose(0, 1) + 1e4, tokens)
    # Adding 1e4 rounds each logit to 1e4 · 2⁻⁵³ ≈ 1e-12.
    torch.testing.assert_close(plain.discriminant, shifted.discriminant, rtol=1e-9, atol=1e-12)


def test_masked_logits_are_tokens_of_probability_zero() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    padded = torch.cat([logits, torch.full((2, 4), -torch.inf, dtype=torch.float64)], dim=-1)
    tokens = torch.tensor([0, 2])
    short, long = (token_statistics(x, tokens, second_order=True) for x in (logits, padded))
    for name in FIELDS:
        torch.testing.assert_close(getattr(short, name), getattr(long, name), rtol=1e-14, atol=0)
    impossible = token_statistics(padded, torch.tensor([5, 6]))
    assert torch.equal(impossible.discriminant, torch.zeros(2, dtype=torch.float64))
    assert torch.all(impossible.log_probs == -torch.inf)


def test_rows_without_a_policy() -> None:
    logits = torch.zeros(3, 5)
    logits[0], logits[1, 2] = -torch.inf, torch.nan
    stats = token_statistics(logits, torch.tensor([1, 1, 1]), second_order=True)
    for name in FIELDS:
        dead, poisoned, fine = getattr(stats, name).tolist()
        assert dead == (-math.inf if name == "log_probs" else 0.0)
        assert math.isnan(poisoned), name  # NaN in, NaN out: never a plausible number
        assert math.isfinite(fine)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=40), st.data())
def test_laws(row: list[float], data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(row) - 1))
    logits = torch.tensor(row, dtype=torch.float64)
    every = token_statistics(logits.expand(len(row), -1), torch.arange(len(row)))
    one = token_statistics(logits, torch.tensor(token))
    assert one.log_probs.shape == ()
    entropy, p = float(one.entropy), every.log_probs.exp()
    assert -1e-12 <= entropy <= math.log(len(row)) + 1e-12
    assert float(every.discriminant.sum()) == pytest.approx(0, abs=1e-12)
    assert float((p * every.centered_discriminant).sum()) == pytest.approx(0, abs=1e-12)
    assert float(one.baseline) >= -1e-15
    assert torch.all(every.discriminant >= -math.exp(-1 - entropy) - 1e-12)
    order = torch.randperm(len(row), generator=torch.Generator().manual_seed(0))
    permuted = token_statistics(logits[order].expand(len(row), -1), torch.arange(len(row)))
    torch.testing.assert_close(permuted.discriminant, every.discriminant[order], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, "logits: expected a floating-point tensor"),
        ({"logits": torch.zeros(2, 1)}, "logits: expected a last dimension V of at least 2"),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, r"tokens: expected shape \(2,\)"),
        ({"tokens": torch.zeros(2)}, "tokens: expected an integer tensor"),
        ({"tokens": torch.tensor([0, 3])}, r"tokens: expected ids in \[0, 3\), received 3"),
        ({"tokens": torch.tensor([-1, 2])}, "received -1"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, received 0.0"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"impl": "fastest"}, "impl: expected one of auto, eager, fused-cpu, triton, received 'fastest'"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    good = {"logits": torch.zeros(2, 3), "tokens": torch.tensor([0, 1])}
    # The shape checker of the test run refuses some of these first; the user's own run has only ours.
    call = getattr(token_statistics, "__wrapped__", token_statistics)
    with pytest.raises(ValueError, match=message):
        call(**(good | change))


def test_empty_input() -> None:
    stats = token_statistics(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert stats.entropy.shape == (0,)
