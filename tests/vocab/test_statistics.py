"""Token statistics of every CPU implementation: 50 digits → the NumPy twin and autograd → the laws of the theory."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from vocab_oracles import DTYPES, TOLERANCE, high_precision, nearly_certain

from entropy_theory.theory import categorical
from entropy_theory.theory import discriminant as theory
from entropy_theory.vocab import choose_implementation, token_statistics
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS

ALL_FIELDS = FIELDS + SECOND_ORDER_FIELDS
every_implementation = pytest.mark.parametrize("impl", ["eager", "fused-cpu"])


@every_implementation
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0.0, 3.0, 8.0, 12.0])
def test_high_precision(impl: str, dtype: torch.dtype, gap: float) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(int(gap)), dtype=torch.float64) * 2
    logits[:, 7] = logits.amax(-1) + gap + 0.1
    logits, tokens = logits.to(dtype), torch.tensor([7, 7, 7, 3, 4, 5])
    for temperature in (1.0, 1.7):
        stats = token_statistics(logits, tokens, second_order=True, temperature=temperature, impl=impl)
        assert stats.impl == impl
        for row in range(6):
            expected = high_precision(logits[row].double().tolist(), int(tokens[row]), temperature)
            for name in ALL_FIELDS:
                # The terms of the curvature have both signs.
                factor = 3 if name == "grpo_curvature" and impl == "fused-cpu" else 1
                value = float(getattr(stats, name)[row])
                assert value == pytest.approx(expected[name], rel=TOLERANCE[dtype] * factor, abs=1e-300), (name, row)


@every_implementation
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_temperature_is_that_of_the_policy(impl: str, temperature: float) -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stats = token_statistics(logits, torch.arange(4), temperature=temperature, impl=impl)
    for row in range(4):
        expected = high_precision(logits[row].tolist(), row, temperature)
        assert float(stats.centered_discriminant[row]) == pytest.approx(expected["centered_discriminant"], rel=1e-12)


@every_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rest", [1e-1, 1e-3, 1e-5, 1e-7])
def test_high_precision_on_nearly_deterministic_rows(impl: str, dtype: torch.dtype, rest: float) -> None:
    # S_y and N of the argmax agree to O(1 − p): their float32 difference has no digit left where this one has six.
    logits = nearly_certain(rest, 1000).to(dtype).expand(2, -1)
    stats = token_statistics(logits, torch.tensor([0, 500]), second_order=True, impl=impl)
    for row, token in enumerate((0, 500)):
        expected = high_precision(logits[row].double().tolist(), token)
        for name in ALL_FIELDS[1:]:
            assert float(getattr(stats, name)[row]) == pytest.approx(expected[name], rel=2e-6), (name, token)


def test_the_numpy_twin_and_autograd_agree() -> None:
    logits = torch.randn(3, 7, 100, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 4
    tokens = torch.randint(0, 100, (3, 7), generator=torch.Generator().manual_seed(3))
    stats = token_statistics(logits, tokens)
    z, y = logits.numpy(), tokens.numpy()
    np.testing.assert_allclose(stats.entropy, categorical.entropy(z), rtol=1e-12)
    np.testing.assert_allclose(stats.discriminant, theory.discriminant(z, y), rtol=1e-11, atol=1e-18)
    np.testing.assert_allclose(stats.baseline, theory.baseline(z), rtol=1e-11)
    np.testing.assert_allclose(stats.centered_discriminant, theory.centered_discriminant(z, y), rtol=1e-9, atol=1e-18)
    leaf = logits.requires_grad_()
    log_p = leaf.log_softmax(-1)
    (gradient,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(), leaf)
    S = -gradient.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(stats.discriminant, S, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("vocab_size", [2, 3, 507, 32_768, 151_936])
def test_float32_at_every_vocabulary_size(vocab_size: int) -> None:
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(4)) * 3
    tokens = torch.tensor([0, vocab_size - 1, int(logits[2].argmax())])
    low, exact = token_statistics(logits, tokens, impl="eager"), token_statistics(logits.double(), tokens, impl="eager")
    assert exact.entropy.dtype == torch.float64
    for name in FIELDS:
        # 1e-6: float32 rounding of d ≲ 16 inside e^d, averaged over the row.
        torch.testing.assert_close(getattr(low, name).double(), getattr(exact, name), rtol=2e-6, atol=1e-12)


@every_implementation
@pytest.mark.parametrize("offset", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_a_shift_of_the_logits_changes_nothing(impl: str, offset: float) -> None:
    # Multiples of 2⁻⁸ below 2¹⁴ are float32 numbers: the shifted logits are exact.
    logits = (torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) * 700).round() / 256
    plain, shifted = (token_statistics(z, torch.arange(4), impl=impl) for z in (logits, logits + offset))
    for name in FIELDS:
        assert torch.equal(getattr(plain, name), getattr(shifted, name)), name


@every_implementation
def test_strided_logits(impl: str) -> None:
    base = torch.randn(3, 5, 700, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 600, (5, 3), generator=torch.Generator().manual_seed(2))
    views = {
        "transposed": base.transpose(0, 1),
        "a slice of the vocabulary": base.transpose(0, 1)[..., 33:],
        "every other row": torch.randn(10, 3, 700)[::2],
        "expanded": base[:1, 0].expand(5, 3, -1),
        "rows of stride ≠ 1": torch.randn(700, 5, 3).permute(1, 2, 0),
    }
    for name, view in views.items():
        plain = token_statistics(view.contiguous().clone(), tokens, second_order=True, impl=impl)
        strided = token_statistics(view, tokens, second_order=True, impl=impl)
        for field in ALL_FIELDS:
            assert torch.equal(getattr(plain, field), getattr(strided, field)), (name, field)


@every_implementation
def test_masked_logits_are_tokens_of_probability_zero(impl: str) -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    padded = torch.cat([logits, torch.full((2, 4), -torch.inf, dtype=torch.float64)], dim=-1)
    short, long = (token_statistics(x, torch.tensor([0, 2]), second_order=True, impl=impl) for x in (logits, padded))
    for name in ALL_FIELDS:
        torch.testing.assert_close(getattr(short, name), getattr(long, name), rtol=1e-14, atol=0)
    impossible = token_statistics(padded, torch.tensor([5, 6]), impl=impl)
    assert torch.equal(impossible.discriminant, torch.zeros(2, dtype=torch.float64))
    assert torch.all(impossible.log_probs == -torch.inf)


@every_implementation
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_a_policy(impl: str, dtype: torch.dtype) -> None:
    logits = torch.zeros(7, 5000, dtype=dtype)
    logits[:, 10] = 3.0
    logits[0] = -torch.inf
    logits[1, 0], logits[2, 4999], logits[3, 2500] = torch.nan, -torch.nan, torch.inf
    logits[4] = torch.nan
    logits[5] = -1.0
    logits[5, 4000] = -torch.nan  # among negative numbers, a NaN with its sign bit set
    stats = token_statistics(logits, torch.full((7,), 10), second_order=True, impl=impl)
    for name in ALL_FIELDS:
        values = getattr(stats, name)
        assert values[0] == (-torch.inf if name == "log_probs" else 0.0)
        assert torch.all(values[1:6].isnan()), name  # never a plausible number
        assert values[6].isfinite()


@every_implementation
@given(st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=60), st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=120)
def test_laws(impl: str, row: list[float], temperature: float) -> None:
    logits, V = torch.tensor(row, dtype=torch.float64), len(row)
    every = token_statistics(logits.expand(V, -1), torch.arange(V), temperature=temperature, impl=impl)
    H, p = float(every.entropy[0]), every.log_probs.exp()
    assert -1e-12 <= H <= math.log(V) + 1e-12
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert float(every.discriminant.sum()) == pytest.approx(0, abs=1e-12)
    assert float((p * every.centered_discriminant).sum()) == pytest.approx(0, abs=1e-12)
    assert torch.all(every.baseline >= -1e-15)
    assert torch.all(every.discriminant >= -math.exp(-1 - H) - 1e-12)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    permuted = token_statistics(logits[order].expand(V, -1), torch.arange(V), temperature=temperature, impl=impl)
    torch.testing.assert_close(permuted.discriminant, every.discriminant[order], rtol=1e-10, atol=1e-14)
    # float32 drops e^d under 2e-38, so no d below −86 here; d up to 86 gives e^d with 86 · 6e-8 relative.
    near = logits.clamp_min(float(logits.max()) - 86 * temperature).expand(V, -1)
    single, exact = (
        token_statistics(z, torch.arange(V), temperature=temperature, impl=impl) for z in (near.float(), near)
    )
    torch.testing.assert_close(single.discriminant.double(), exact.discriminant, rtol=3e-5, atol=1e-7)
    torch.testing.assert_close(single.entropy.double(), exact.entropy, rtol=3e-5, atol=1e-37)


@every_implementation
def test_empty_input_and_no_leading_dimension(impl: str) -> None:
    assert token_statistics(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), impl=impl).entropy.shape == (0,)
    assert token_statistics(torch.zeros(5), torch.tensor(1), impl=impl).entropy.shape == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, "logits: expected a floating-point tensor"),
        ({"logits": torch.zeros(2, 1)}, "logits: expected a last dimension V of at least 2"),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, r"tokens: expected shape \(2,\)"),
        ({"tokens": torch.zeros(2)}, "tokens: expected an integer tensor"),
        ({"tokens": torch.tensor([0, 3])}, r"tokens: expected ids in \[0, 3\), received 3"),
        ({"tokens": torch.tensor([-1, 2])}, "received -1"),
        ({"temperature": math.inf}, "temperature"),
        ({"impl": "fastest"}, "impl: expected one of auto, eager, fused-cpu, triton, received 'fastest'"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    good = {"logits": torch.zeros(2, 3), "tokens": torch.tensor([0, 1])}
    # The shape checker of the test run refuses some of these first; the user's own run has only ours.
    call = getattr(token_statistics, "__wrapped__", token_statistics)
    with pytest.raises(ValueError, match=message):
        call(**(good | change))


def test_the_choice_is_explained() -> None:
    name, reason = choose_implementation(torch.zeros(8, 10))
    assert name == "eager"
    assert "too few" in reason
    assert choose_implementation(torch.zeros(8, 151_936))[0] == "fused-cpu"
    assert choose_implementation(torch.zeros(8, 151_936, device="meta"))[0] == "eager"
    assert token_statistics(torch.zeros(8, 151_936), torch.zeros(8, dtype=torch.int64)).impl == "fused-cpu"


def test_a_request_that_cannot_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises((ValueError, ImportError), match=r"impl: expected an implementation for cpu|extra"):
        token_statistics(torch.zeros(2, 5), torch.tensor([0, 1]), impl="triton")
    monkeypatch.setattr("entropy_theory.vocab.implementations.HAS_TRITON", False)
    with pytest.raises(ImportError, match=r"entropy-theory\[gpu\]"):
        token_statistics(torch.zeros(2, 5), torch.tensor([0, 1]), impl="triton")
