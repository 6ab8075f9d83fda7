"""The fused CPU implementation: long double → float64 eager → fused; 50 digits and laws are in `test_statistics`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from vocab_oracles import DTYPES, FIELDS, llm_like, long_double, nearly_certain

from entropy_theory.vocab import TokenStatistics, token_statistics
from entropy_theory.vocab.accumulators import merge
from entropy_theory.vocab.kernels import cpu_loops, fused_cpu, threads

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


def test_strides_are_read_in_place() -> None:
    base = torch.randn(3, 5, 700)
    storage, offsets = fused_cpu._rows(base.transpose(0, 1))
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
    monkeypatch.setattr(threads, "_forked", own_pool)
    shared = fused(logits, tokens)
    torch.set_num_threads(1)
    assert_same(fused(logits, tokens), shared, rtol=0.0)


@pytest.mark.parametrize("own_pool", [False, True])
def test_an_error_on_any_thread_is_raised(own_pool: bool, three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_forked", own_pool)

    def fail(part: slice) -> None:
        if part.start > 5:
            raise OSError(f"row {part.start}")

    with pytest.raises(OSError, match="row"):
        threads.share(fail, 40, 3)


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
