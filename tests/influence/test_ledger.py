"""The ledger on known numbers, its errors against resampling, its first order against finite differences."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from entropy_theory import records
from entropy_theory.influence import (
    BatchEntropy,
    FirstOrder,
    Ledger,
    StepBatch,
    entropy_gradient,
    run_summary,
    step_parts,
)
from entropy_theory.influence.ledger import PREFIX


def drawn(generator: torch.Generator, groups: int = 8, level: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Entropies of rows of unequal length in groups that differ: tokens of a group are alike."""
    mean = level + 0.3 * torch.randn(groups, 1, generator=generator)
    entropy = (mean.repeat_interleave(4, 0) + 0.1 * torch.randn(4 * groups, 6, generator=generator)).abs()
    lengths = torch.randint(1, 7, (4 * groups, 1), generator=generator)
    return entropy, torch.arange(6) < lengths, torch.arange(groups).repeat_interleave(4)


def batches(count: int, seed: int = 0) -> list[tuple[BatchEntropy, BatchEntropy]]:
    """Of each batch the entropies under two policies."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k in range(count):
        entropy, mask, groups = drawn(generator, level=2.0 - 0.1 * k)
        later = entropy - 0.05 + 0.02 * torch.randn(entropy.shape, generator=generator)
        made.append(tuple(BatchEntropy.from_tokens(h, mask, groups) for h in (entropy, later)))
    return made


def test_means_are_those_of_the_tokens() -> None:
    entropy, mask, groups = drawn(torch.Generator().manual_seed(0))
    shuffled = torch.randperm(len(entropy))
    spoiled = torch.where(mask, entropy, float("nan"))
    for order in (torch.arange(len(entropy)), shuffled):
        found = BatchEntropy.from_tokens(spoiled[order], mask[order], groups[order])
        assert found.mean == pytest.approx(float(entropy[mask].double().mean()), rel=1e-14)
        assert found.counts == tuple(int(mask[groups == g].sum()) for g in range(8))


def test_standard_error_against_the_jackknife_over_groups() -> None:
    """Leave out a group at a time: independent of the linearisation, and equal to it up to O(1/G)."""
    errors = []
    for seed in range(5):
        entropy, mask, groups = drawn(torch.Generator().manual_seed(seed), groups=64)
        without = torch.stack([entropy[mask & (groups != g)[:, None]].double().mean() for g in range(64)])
        jackknife = math.sqrt(63 / 64 * float(((without - without.mean()) ** 2).sum()))
        errors.append(BatchEntropy.from_tokens(entropy, mask, groups).standard_error / jackknife)
    assert errors == pytest.approx([1.0] * 5, abs=3 / 64)  # O(1/G) of linearisation


def test_standard_error_is_that_of_fresh_batches() -> None:
    """The deviation of M over 400 batches, itself known to 1/√800 = 3.5 %; three of these, and the bias O(1/G)."""
    generator = torch.Generator().manual_seed(1)
    found = [BatchEntropy.from_tokens(*drawn(generator, groups=32)) for _ in range(400)]
    means = torch.tensor([batch.mean for batch in found], dtype=torch.float64)
    predicted = math.sqrt(sum(batch.standard_error**2 for batch in found) / len(found))
    assert predicted == pytest.approx(float(means.std()), rel=3 * 0.035 + 1 / 32)


def test_the_account_closes_and_its_numbers_are_the_definitions() -> None:
    made = batches(6)
    ledger, entries = Ledger(), []
    for sampled, updated in made:
        ledger, entry = ledger.with_batch(sampled)
        entries.append(entry)
        ledger = ledger.with_updated(sampled).with_updated(updated)  # measured again: the last one counts
    assert entries[0].metrics() == {
        "entropy": made[0][0].mean,
        "cumulative_fixed": 0.0,
        "cumulative_remainder": 0.0,
        "closing_error": 0.0,
    }
    for k, entry in enumerate(entries[1:]):
        (before, after), (following, _) = made[k], made[k + 1]
        assert entry.entropy == following.mean
        assert entry.fixed == after.mean - before.mean
        assert entry.remainder == following.mean - after.mean
        assert entry.remainder_se == pytest.approx(math.hypot(following.standard_error, after.standard_error))
        assert abs(entry.closing_error) < 1e-14  # rounding of numbers of the order of 1
    last = entries[-1]
    assert last.cumulative_fixed == pytest.approx(sum(entry.fixed for entry in entries[1:]), abs=1e-14)
    assert made[0][0].mean + last.cumulative_fixed + last.cumulative_remainder == pytest.approx(last.entropy, abs=1e-14)


def test_the_error_of_the_sum_is_that_of_fresh_runs() -> None:
    """Over 300 runs of five batches in which nothing moves: the sum's deviation, known to 1/√600, and the one given."""
    sums, errors = [], []
    generator = torch.Generator().manual_seed(2)
    for _ in range(300):
        ledger = Ledger()
        for _ in range(5):
            entropy, mask, groups = drawn(generator, groups=16)
            later = entropy + 0.1 * torch.randn(64, 1, generator=generator)
            ledger, entry = ledger.with_batch(BatchEntropy.from_tokens(entropy, mask, groups))
            ledger = ledger.with_updated(BatchEntropy.from_tokens(later, mask, groups))
        sums.append(entry.cumulative_remainder)
        errors.append(entry.cumulative_remainder_se)
    deviation = float(torch.tensor(sums, dtype=torch.float64).std())
    given = math.sqrt(sum(error**2 for error in errors) / len(errors))
    assert given == pytest.approx(deviation, rel=3 / math.sqrt(600) + 1 / 16)
    # the errors of single remainders do not add up in squares: those of one batch nearly cancel
    assert given < 0.8 * math.sqrt(4) * entry.remainder_se


def test_with_one_group_there_is_no_error_and_no_band() -> None:
    entropy, mask, _ = drawn(torch.Generator().manual_seed(0))
    batch = BatchEntropy.from_tokens(entropy, mask, None)
    assert batch.standard_error is None
    ledger, _ = Ledger().with_batch(batch)
    _, entry = ledger.with_updated(batch).with_batch(batch)
    assert "remainder" in entry.metrics()
    assert not {"fixed_se", "remainder_se", "cumulative_remainder_se"} & entry.metrics().keys()


def test_json_keeps_every_bit() -> None:
    ledger = Ledger()
    for sampled, updated in batches(3):
        ledger, _ = ledger.with_batch(sampled, split=True)
        assert Ledger.from_data(json.loads(json.dumps(records.to_data(ledger)))) == ledger
        ledger = ledger.with_update(FirstOrder(1 / 3, 0.1, -0.7)).with_updated(updated)
        assert Ledger.from_data(json.loads(json.dumps(records.to_data(ledger)))) == ledger


def test_the_first_order_is_the_derivative_along_the_step() -> None:
    """⟨∇H̄, Δθ_part⟩ of a real step against central differences of H̄ along each part, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # GPT-2 has no part that computes in float32 whatever its weights are, unlike the decoder's RMSNorm
        sizes = {"vocab_size": 21, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)).double().eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (4, 6), generator=generator)
    ones = torch.ones(4, 6, dtype=torch.long)
    batch = StepBatch(ids[:, :2], ones[:, :2], ids[:, 2:], ones[:, 2:], torch.zeros(4), torch.arange(4), 1.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(input_ids=ids).logits[:, 1:-1]
        (torch.randn(4, 4, generator=generator) * logits.log_softmax(-1)[..., 5]).sum().backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        slope, _ = entropy_gradient(model, batch)
        optimizer.step()
    parts = step_parts(optimizer, dict(model.named_parameters()), before, gradient)

    @torch.no_grad()
    def mean_entropy(direction: dict[str, torch.Tensor], size: float) -> float:
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name] + size * direction.get(name, 0.0))
        p = torch.distributions.Categorical(logits=model(input_ids=ids).logits[:, 1:-1] / 1.3)
        return float(p.entropy().mean())

    for direction in (parts.now, parts.momentum, parts.decay):
        predicted = sum(float((slope[name] * moved).sum()) for name, moved in direction.items())
        h = 1e-3  # of a step of 1e-2: the difference has an error of h² relative, and 1e-16/(1e-3 · 1e-4) of rounding
        found = (mean_entropy(direction, h) - mean_entropy(direction, -h)) / (2 * h)
        assert abs(predicted) > 1e-6
        assert predicted == pytest.approx(found, rel=1e-4)


def test_refusals() -> None:
    entropy, mask, groups = drawn(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="mask: expected at least one valid token over all ranks"):
        BatchEntropy.from_tokens(entropy, torch.zeros_like(mask), groups)
    with pytest.raises(ValueError, match="entropy: expected finite numbers at valid tokens, received NaN or infinity"):
        BatchEntropy.from_tokens(torch.full_like(entropy, float("nan")), mask, groups)
    ledger, _ = Ledger().with_batch(BatchEntropy((1.0,), (2,)))
    with pytest.raises(ValueError, match="ledger: expected the last batch's entropy after its updates"):
        ledger.with_batch(BatchEntropy((1.0,), (2,)))
    with pytest.raises(ValueError, match="before: expected the same tokens"):
        ledger.with_updated(BatchEntropy((1.0,), (3,)))
    with pytest.raises(ValueError, match="ledger: expected a sampled batch before its updates"):
        Ledger().with_updated(BatchEntropy((1.0,), (3,)))
    with pytest.raises(ValueError, match="ledger: expected the data of a ledger"):
        Ledger.from_data({"batches": 1})
    with pytest.raises(ValueError, match="run: expected a run with ledger entries, as train --ledger writes them"):
        run_summary([{"step": 1, "entropy": 2.0}])
    entries = [{PREFIX + "entropy": 2.0}, {PREFIX + "entropy": 1.5, PREFIX + "fixed": -0.25}]
    with pytest.raises(ValueError, match=r"run: expected a ledger whose parts add up .* received -0\.25 nats"):
        run_summary([{"step": 1} | entries[0], {"step": 2} | entries[1]])
    for wrong in (None, "much", True, float("inf")):
        with pytest.raises(ValueError, match=f"{PREFIX}fixed: expected a finite number"):
            run_summary([{"step": 1, PREFIX + "entropy": 2.0, PREFIX + "fixed": wrong}])
    same = {PREFIX + "entropy": 2.0, PREFIX + "fixed": 0.0, PREFIX + "remainder": 0.0}
    with pytest.raises(ValueError, match="run: expected steps that increase, after 2, received 2"):
        run_summary([{"step": 2} | same, {"step": 2} | same])
    narrow, halves = mask[:, :1], groups + 0.5
    for name, arguments in (
        ("mask", (entropy, narrow, groups)),
        ("mask", (entropy, mask.float(), groups)),
        ("group_ids", (entropy, mask, groups[:1])),
        ("group_ids", (entropy, mask, halves)),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected .* of shape"):
            BatchEntropy.from_tokens(*arguments)
    data = records.to_data(ledger)
    for change in ({"start": "a"}, {"start": None}, {"cumulative_fixed": float("nan")}, {"batches": None}):
        with pytest.raises(ValueError, match="ledger: expected the data of a ledger"):
            Ledger.from_data(data | change)
