"""What a loss divides by: the rule's own token mean from a trainer's, and TRL's reductions written out."""

from __future__ import annotations

import pytest
import torch
from control_batches import random_batch

from entropy_theory.control import aggregate
from entropy_theory.control.denominators import TRL_DIVISORS, VERL_DIVISORS, reduce_as_trl, shrinkage

batch = random_batch(0)
mask, x = batch.completion_mask, batch.log_probs.masked_fill(~batch.completion_mask, 0.0)
counted = mask & (batch.entropy > batch.entropy.median())


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_shrinkage_turns_the_trainers_mean_into_the_rules(mode: str) -> None:
    values = x.masked_fill(~counted, 0.0)
    full = counted.any(dim=1)  # a row without counted tokens counts in the trainer's mean of rows alone
    scale = shrinkage(mask, counted, VERL_DIVISORS[mode])
    rows = int(mask.any(dim=1).sum()) / int(full.sum()) if mode == "seq-mean-token-mean" else 1.0
    torch.testing.assert_close(aggregate(values * scale, mask, mode) * rows, aggregate(values, counted, mode))


def test_nothing_shrinks_where_nothing_is_left_out_or_counted() -> None:
    assert shrinkage(mask, mask, "token") is None
    assert shrinkage(mask, counted, "constant") is None


@pytest.mark.parametrize("loss_type", sorted(TRL_DIVISORS))
def test_trls_reductions_by_hand(loss_type: str) -> None:
    lengths = mask.sum(1).tolist()
    sums = [sum(row[:n]) for row, n in zip(x.tolist(), lengths, strict=True)]
    total, rows = sum(sums), len(sums)
    expected = {
        "bnpo": total / sum(lengths) / 2,
        "grpo": sum(s / max(n, 1) for s, n in zip(sums, lengths, strict=True)) / rows / 2,
        "dr_grpo": total / (rows * 20) / 2,
        "luspo": total / rows / 2,
        "dapo": total / 50,
    }
    expected |= {"cispo": expected["dapo"], "vespo": expected["dapo"], "sapo": expected["grpo"]}
    found = reduce_as_trl(x, mask, loss_type, steps=2, items=50.0, longest=20)
    assert float(found) == pytest.approx(expected[loss_type], rel=1e-12)


def test_missing_divisors_are_named() -> None:
    for loss_type, name in (("dapo", "items"), ("dr_grpo", "longest"), ("ppo", "loss_type")):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            reduce_as_trl(x, mask, loss_type, steps=1)
