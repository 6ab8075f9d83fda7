"""The bank's statistics, samples and exact changes against many digits, the vocabulary room and chi-square."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from scipy import stats

from entropy_theory.dynamics import bank, starts
from entropy_theory.dynamics.draws import Draw, generator
from entropy_theory.vocab import token_statistics


def peaked_logits(gap: float, vocab_size: int = 12, seed: int = 0) -> torch.Tensor:
    """One policy whose likeliest token leads by `gap`."""
    z = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z[3] = z.max() + gap
    return z


@pytest.mark.parametrize("gap", [0.1, 1.0, 5.0, 20.0, 35.0])
def test_mpmath_statistics_keep_their_digits_on_peaked_policies(gap: float) -> None:
    z = peaked_logits(gap)
    policy = bank.policy_statistics(z.unsqueeze(0))
    exact = oracles.ExactPolicy.of(z.numpy())
    scores = policy.at(torch.arange(12).unsqueeze(0))
    assert oracles.relative_error(policy.entropy.item(), exact.entropy) < 1e-14
    assert oracles.relative_error(policy.baseline.item(), exact.baseline) < 1e-14
    tail = 1 - exact.probs[3]
    assert oracles.relative_error(policy.tail.item(), tail) < 1e-14
    for token, S in enumerate(exact.discriminants):
        assert oracles.relative_error(scores.discriminant[0, token].item(), S) < 1e-13
    likeliest = exact.discriminants[3] - exact.baseline  # O(tail²): S and N agree to all but their last digits
    assert oracles.relative_error(scores.centered_discriminant[0, 3].item(), likeliest) < 1e-13


@pytest.mark.parametrize("shape", [(50, 2), (50, 100), (3, 5000)])
def test_twin_of_the_vocabulary_room(shape: tuple[int, int]) -> None:
    z = starts.gaussian_logits(*shape, 2.0, seed=1)
    tokens = torch.randint(shape[1], (shape[0], 7), generator=torch.Generator().manual_seed(0))
    policy, twin = (
        bank.policy_statistics(z),
        token_statistics(z.unsqueeze(1).expand(-1, 7, -1), tokens, second_order=True),
    )
    scores = policy.at(tokens)
    for name in ("log_probs", "discriminant", "centered_discriminant"):
        torch.testing.assert_close(getattr(scores, name), getattr(twin, name), rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(policy.entropy, twin.entropy[:, 0], rtol=1e-13, atol=0)
    torch.testing.assert_close(policy.baseline, twin.baseline[:, 0], rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(
        policy.sum_squared_discriminant(), twin.sum_squared_discriminant[:, 0], rtol=1e-11, atol=1e-18
    )
    S = policy.discriminants()
    variance = torch.stack([torch.cov(S[b], correction=0, aweights=policy.probs[b]) for b in range(shape[0])])
    torch.testing.assert_close(policy.discriminant_variance(), variance, rtol=1e-9, atol=1e-15)


def test_uniform_and_tied_policies() -> None:
    policy = bank.policy_statistics(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, -30.0]]))
    scores = policy.at(torch.tensor([[0, 2], [0, 1]]))
    assert scores.centered_discriminant[0].tolist() == [0.0, 0.0]
    assert policy.entropy[0].item() == pytest.approx(np.log(3), rel=1e-15)
    exact = oracles.ExactPolicy.of(np.array([0.0, 0.0, -30.0]))
    assert oracles.relative_error(policy.entropy[1].item(), exact.entropy) < 1e-15


@pytest.mark.parametrize("gap", [0.5, 8.0, 25.0])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-2, 0.9, 30.0, 800.0])
def test_mpmath_exact_change(gap: float, size: float) -> None:
    z = peaked_logits(gap)
    for seed in range(4):
        move = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
        policy = bank.policy_statistics(z.unsqueeze(0))
        change = bank.entropy_change(policy, move.unsqueeze(0)).item()
        exact = oracles.exact_entropy_change(z.numpy(), move.numpy())
        # the budget that the docstring states, with the move measured from the likeliest token; ends for far moves
        relative = move - move[3]
        terms = (policy.probs[0] * relative.abs() * (1 + policy.excess[0].abs())).sum().item()
        before, after = policy.entropy.item(), bank.policy_statistics((z + move).unsqueeze(0)).entropy.item()
        budget = terms if relative.abs().max() <= bank.FAR else before + after
        assert abs(change - float(exact)) <= 1e-15 * budget * (1 + size)


def test_exact_change_at_model_vocabulary() -> None:
    z = starts.gaussian_logits(2, 151_936, 3.0, seed=0)
    move = torch.zeros_like(z)
    move[:, 77] = 1e-7
    change = bank.entropy_change(bank.policy_statistics(z), move)
    log_probs = z.log_softmax(-1)
    H = -(log_probs.exp() * log_probs).sum(-1)
    S = (log_probs.exp() * (H.unsqueeze(-1) + log_probs))[:, 77]
    torch.testing.assert_close(change, -1e-7 * S, rtol=1e-6, atol=0)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    z = starts.gaussian_logits(3, 151_936, 2.0, seed=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # one long row alone would otherwise be summed in two parts
    try:
        together = bank.policy_statistics(z)
        alone = [bank.policy_statistics(z[b : b + 1]) for b in range(3)]
    finally:
        torch.set_num_threads(threads)
    for name in ("probs", "excess", "entropy", "baseline", "tail", "tail_baseline"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(a, name) for a in alone])), name


def test_samples_follow_the_policy() -> None:
    z = starts.gaussian_logits(4, 9, 1.0, seed=5)
    policy = bank.policy_statistics(z)
    n = 50_000
    tokens = bank.sample_tokens(
        policy.probs, torch.rand(4, n, generator=generator(0, Draw.TOKENS), dtype=torch.float64)
    )
    for b in range(4):
        observed = torch.bincount(tokens[b], minlength=9).numpy()
        assert stats.chisquare(observed, policy.probs[b].numpy() * n).pvalue > 1e-3


@pytest.mark.parametrize("vocab_size", [2, 3, 7, 8, 100, 129])
def test_sampling_inverts_the_cumulative_distribution(vocab_size: int) -> None:
    probs = bank.policy_statistics(starts.gaussian_logits(5, vocab_size, 3.0, seed=2)).probs
    probs[:, 1] = 0.0
    edges = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64).expand(5, 3)
    uniforms = torch.cat([torch.rand(5, 500, generator=generator(1, Draw.TOKENS), dtype=torch.float64), edges], dim=-1)
    tokens = bank.sample_tokens(probs, uniforms)
    cumulative = probs.cumsum(-1).numpy()
    for b in range(5):
        expected = np.searchsorted(cumulative[b], uniforms[b].numpy() * cumulative[b, -1], side="right")
        assert tokens[b].tolist() == expected.clip(max=vocab_size - 1).tolist()
    assert not (tokens == 1).any()


def test_truncation_keeps_the_smallest_sufficient_set() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.05, 0.05, 0.9]], dtype=torch.float64)
    kept = bank.truncated(probs, 0.6)
    assert (kept > 0).tolist() == [[False, True, True], [False, False, True]]
    assert torch.equal(bank.truncated(probs, 1.0), probs)


def test_initial_draws_depend_on_seed_and_place_only() -> None:
    assert torch.equal(starts.gaussian_logits(10, 6, 2.0, 3), starts.gaussian_logits(130, 6, 2.0, 3)[:10])
    assert not torch.equal(starts.gaussian_logits(10, 6, 2.0, 3), starts.gaussian_logits(10, 6, 2.0, 4))
    right = starts.correct_tokens(130, 20, 0.3, 0)
    assert torch.equal(right[:7], starts.correct_tokens(7, 20, 0.3, 0))
    assert right.sum(-1).tolist() == [6] * 130
    assert (right.sum(0) > 15).all()  # every place is right for some policies
    assert starts.correct_tokens(2, 4, 0.01, 0).sum(-1).tolist() == [1, 1]
    assert starts.correct_tokens(2, 4, 0.99, 0).sum(-1).tolist() == [3, 3]


def test_purposes_and_counters_draw_apart() -> None:
    keys = [(0, Draw.TOKENS, 0), (0, Draw.TOKENS, 1), (1, Draw.TOKENS, 0), (0, Draw.RULE, 0), (0, Draw.RULE, 0, 0)]
    firsts = {torch.rand((), generator=generator(*key), dtype=torch.float64).item() for key in keys}
    assert len(firsts) >= 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generator(-1, Draw.TOKENS), "seed: expected an integer >= 0, received -1"),
        (lambda: generator(0, Draw.TOKENS, -2), "counter: expected an integer >= 0, received -2"),
        (lambda: bank.truncated(torch.ones(1, 2), 0.0), r"top_p: expected a number in \(0, 1\], received 0.0"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_forking_bank_has_the_shares_it_promises() -> None:
    """Shares of 4000 draws: σ = √(.25/4000) = .008 and √(.16/4000) = .006; 4 σ."""
    H = bank.policy_statistics(starts.forking_logits(4000, 64, 3)).entropy
    assert abs(float((H < 0.01).double().mean()) - 0.5) < 0.032
    assert abs(float((H > 0.67).double().mean()) - 0.2) < 0.026
    assert float(H.min()) > 0.9e-4
    assert torch.equal(starts.forking_logits(10, 64, 3), starts.forking_logits(4000, 64, 3)[:10])
    with pytest.raises(ValueError, match="vocab_size: expected at least 4"):
        starts.forking_logits(2, 3, 0)
