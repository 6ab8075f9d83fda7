"""The fused CPU implementation: 50 digits → long double → float64 eager → fused."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from vocab_oracles import DTYPES, FIELDS, TOLERANCE, high_precision, llm_like, long_double, nearly_certain

from entropy_theory.vocab import TokenStatistics, token_statistics
from entropy_theory.vocab.accumulators import merge
from entropy_theory.vocab.kernels import cpu_loops, fused_cpu

VOCABULARIES = (2, 3, 507, 32_768, 50_257, 151_936)


def fused(logits: Tensor, tokens: Tensor, **options: object) -> TokenStatistics:
    statistics = token_statistics(logits, tokens, impl="fused-cpu", **options)
    assert statistics.impl == "fused-cpu"
    return statistics


def exact(logits: Tensor, tokens: Tensor, **options: object) -> TokenStatistics:
    return token_statistics(logits.double(), tokens, impl="eager", **options)


def assert_same(one: TokenStatistics, other: TokenStatistics, rtol: float, atol: float = 0.0) -> None:
    for name in FIELDS:
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left.double(), right.double(), rtol=rtol, atol=atol, equal_nan=True, msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0.0, 3.0, 8.0, 12.0])
def test_high_precision(dtype: torch.dtype, gap: float) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(int(gap)), dtype=torch.float64) * 2
    logits[:, 7] = logits.amax(-1) + gap + 0.1
    logits, tokens = logits.to(dtype), torch.tensor([7, 7, 7, 3, 4, 5])
    for temperature in (1.0, 1.7):
        stats = fused(logits, tokens, second_order=True, temperature=temperature)
        for row in range(6):
            expected = high_precision(logits[row].double().tolist(), int(tokens[row]), temperature)
            for name in FIELDS:
                # The terms of the curvature have both signs.
                tolerance = TOLERANCE[dtype] * (3 if name == "grpo_curvature" else 1)
                value = float(getattr(stats, name)[row])
                assert value == pytest.approx(expected[name], rel=tolerance, abs=1e-300), (name, row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rest", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
def test_high_precision_on_nearly_deterministic_rows(rest: float, dtype: torch.dtype) -> None:
    logits = nearly_certain(rest, 1000).to(dtype).expand(2, -1)
    stats = fused(logits, torch.tensor([0, 500]), second_order=True)
    for row, token in enumerate((0, 500)):
        expected = high_precision(logits[row].double().tolist(), token)
        for name in FIELDS[1:]:
            assert float(getattr(stats, name)[row]) == pytest.approx(expected[name], rel=2e-6), (name, token)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_double_at_vocabulary_size(dtype: torch.dtype) -> None:
    logits, tokens = llm_like(8, 151_936)
    certain = torch.stack([nearly_certain(10.0**-k, 151_936) for k in (1, 3, 5, 7) for _ in range(2)])
    logits, tokens = torch.cat([logits, certain]).to(dtype), torch.cat([tokens, torch.tensor([0, 70_000] * 4)])
    stats = fused(logits, tokens)
    for row in range(len(tokens)):
        expected = long_double(logits[row], int(tokens[row]))
        for name in FIELDS[:5]:
            assert float(getattr(stats, name)[row]) == pytest.approx(expected[name], rel=2e-6), (name, row)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_float64_eager_within_the_error_budget(vocab_size: int, dtype: torch.dtype) -> None:
    # No further from the float64 answer than eager of the same dtype, plus one part in 10⁶: the exponential's 1e-7,
    # and e^d from a rounded d like eager, whose own error may happen to cancel. A hundredth of it in float64 units.
    margin = 1e-6 if dtype != torch.float64 else 1e-13
    logits, tokens = llm_like(4, vocab_size, seed=vocab_size)
    logits = logits.to(dtype)
    for temperature in (0.6, 1.0):
        reference = exact(logits, tokens, temperature=temperature)
        eager = token_statistics(logits, tokens, temperature=temperature, impl="eager")
        stats = fused(logits, tokens, temperature=temperature)
        for name in FIELDS[:5]:
            answer = getattr(reference, name)
            budget = (getattr(eager, name).double() - answer).abs() + margin * answer.abs() + 1e-37
            # S_c of a token off the maximum is a difference: its error is that of S and N.
            if name == "centered_discriminant":
                budget += margin * reference.discriminant.abs()
            assert torch.all((getattr(stats, name).double() - answer).abs() <= budget), name


@pytest.mark.parametrize("offset", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_a_shift_of_the_logits_changes_nothing(offset: float) -> None:
    # Multiples of 2⁻⁸ below 2¹⁴ are float32 numbers: the shifted logits are exact.
    logits = (torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) * 700).round() / 256
    tokens = torch.tensor([0, 1, 2, 3])
    assert_same(fused(logits, tokens), fused(logits + offset, tokens), rtol=0.0)


def test_strides_are_read_in_place() -> None:
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
        assert view.data_ptr() == view.as_strided((1,), (1,)).data_ptr()
        for second_order in (False, True):
            plain = fused(view.contiguous().clone(), tokens, second_order=second_order)
            assert_same(plain, fused(view, tokens, second_order=second_order), rtol=0.0), name
    storage, offsets = fused_cpu._rows(views["transposed"])
    assert storage.data_ptr() == base.data_ptr()
    assert offsets.size == 15


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_maximum_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    V = 5000  # two blocks and a part of one, at least, in every dtype
    rising = torch.linspace(-8, 8, V)
    falling, negative, tied = rising.flip(0), rising - 20, torch.zeros(V)
    tied[1::2] = -0.0  # as numbers they are equal
    plateau = rising.clamp(max=3.0)
    late = torch.full((V,), -torch.inf)
    late[-3:] = torch.tensor([0.5, 1.0, -2.0])
    early = late.flip(0)
    sunk = rising.clone()
    sunk[::7] = -90.0  # far below: e^d is not a normal float32 number
    sunk[1::7] = -torch.inf
    logits = torch.stack([rising, falling, negative, tied, plateau, late, early, sunk]).to(dtype)
    for token in (0, V // 2, V - 2):
        tokens = torch.full((8,), token)
        stats, reference = (f(logits, tokens, second_order=True) for f in (fused, exact))
        # e^{−90} and its products underflow; a tie leaves S and N exactly zero.
        assert_same(stats, reference, rtol=4e-6 if dtype != torch.float64 else 1e-10, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_a_policy(dtype: torch.dtype) -> None:
    logits = torch.zeros(7, 5000, dtype=dtype)
    logits[:, 10] = 3.0
    logits[0] = -torch.inf
    logits[1, 0], logits[2, 4999], logits[3, 2500] = torch.nan, -torch.nan, torch.inf
    logits[4] = torch.nan
    logits[5] = -1.0
    logits[5, 4000] = -torch.nan  # among negative numbers, a NaN with its sign bit set
    stats = fused(logits, torch.full((7,), 10), second_order=True)
    for name in FIELDS:
        values = getattr(stats, name)
        assert values[0] == (-torch.inf if name == "log_probs" else 0.0)
        assert torch.all(values[1:6].isnan()), name  # never a plausible number
        assert values[6].isfinite()


def test_parts_of_the_vocabulary_add_up() -> None:
    logits, _ = llm_like(6, 9000, seed=3)
    whole = fused_cpu.accumulate(logits, 0.8, True)
    sums = None
    for start in range(0, 9000, 1700):
        sums = fused_cpu.accumulate(logits[:, start : start + 1700], 0.8, True, into=sums)
    parts = torch.stack([fused_cpu.accumulate(part, 0.8, True) for part in logits.split(1700, dim=-1)])
    # Each part rounds d = z − max z against its own maximum.
    torch.testing.assert_close(sums, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(merge(parts, 0.8), whole, rtol=1e-6, atol=0)


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(fused_cpu, "TURN_ELEMENTS", 9000)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("own_pool", [False, True])
def test_threads_do_not_change_the_result(own_pool: bool, three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, tokens = llm_like(40, 3000, seed=4)
    monkeypatch.setattr(fused_cpu, "_forked", own_pool)
    shared = fused(logits, tokens)
    torch.set_num_threads(1)
    assert_same(fused(logits, tokens), shared, rtol=0.0)


@pytest.mark.parametrize("own_pool", [False, True])
def test_an_error_on_any_thread_is_raised(own_pool: bool, three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cpu, "_forked", own_pool)

    def fail(part: slice) -> None:
        if part.start > 5:
            raise OSError(f"row {part.start}")

    with pytest.raises(OSError, match="row"):
        fused_cpu._share(fail, 40, 3000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_threads_of_its_own(three_threads: None) -> None:
    logits, tokens = llm_like(40, 3000, seed=4)
    entropy = fused(logits, tokens).entropy
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(fused(logits, tokens).entropy, entropy) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_exponential_to_the_last_place() -> None:
    high, low, lowest = cpu_loops.exponent_constants(cpu_loops.np.dtype("float32"), 1.0)
    assert -87.0 < float(lowest) < -86.9
    assert float(high) + float(low) == pytest.approx(1.4426950408889634, rel=1e-14)
    logits = torch.linspace(-86, 0, 2001)
    logits[-1] = 0.0
    sums = fused_cpu.accumulate(torch.stack([logits, logits.flip(0)]), 1.0, False)
    expected = logits[:-1].double().exp().sum()
    torch.testing.assert_close(sums[:, 2], expected.expand(2), rtol=2e-7, atol=0)


@given(st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=60), st.data())
@settings(max_examples=150)
def test_laws(row: list[float], data: st.DataObject) -> None:
    logits = torch.tensor(row)
    V = len(row)
    temperature = data.draw(st.sampled_from([0.5, 1.0, 3.0]))
    every = fused(logits.expand(V, -1), torch.arange(V), temperature=temperature)
    entropy, p = every.entropy[0].double(), every.log_probs.double().exp()
    assert 0 <= float(entropy) <= torch.tensor(V).log() + 1e-6
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert float(every.discriminant.double().sum()) == pytest.approx(0, abs=1e-5)
    assert float((p * every.centered_discriminant.double()).sum()) == pytest.approx(0, abs=1e-5)
    assert torch.all(every.baseline >= -1e-7)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    permuted = fused(logits[order].expand(V, -1), torch.arange(V), temperature=temperature)
    # d up to 240: e^d carries 240 · 6e-8 relative.
    torch.testing.assert_close(permuted.discriminant, every.discriminant[order], rtol=3e-5, atol=1e-7)
    reference = exact(logits.expand(V, -1), torch.arange(V), temperature=temperature)
    torch.testing.assert_close(every.discriminant.double(), reference.discriminant, rtol=3e-5, atol=1e-7)
    torch.testing.assert_close(every.entropy.double(), reference.entropy, rtol=3e-5, atol=1e-37)


def test_empty_input() -> None:
    assert fused(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).entropy.shape == (0,)
    assert fused(torch.zeros(5), torch.tensor(1)).entropy.shape == ()
