"""On-policy entropy after an update, against the enumeration of every sequence under the old and the new policy."""

from __future__ import annotations

import pytest
import torch
from influence_models import TinyModel, log_policies, step_batch
from torch import Tensor

from entropy_theory.influence.held_out import prefix_weights, reweighted_entropy, token_scores
from entropy_theory.influence.model_view import ModelView

VOCAB, LONGEST = 3, 4  # token 0 ends a sequence


class Tree:
    """A policy with free logits after every prefix, and a second one beside it."""

    def __init__(self, seed: int, step: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.policies: list[dict[tuple[int, ...], Tensor]] = [{}, {}]
        prefixes: list[tuple[int, ...]] = [()]
        while prefixes:
            prefix = prefixes.pop()
            logits, move = torch.randn(2, VOCAB, generator=generator, dtype=torch.float64)
            for policy, z in zip(self.policies, (1.5 * logits, 1.5 * logits + step * move), strict=True):
                policy[prefix] = z.softmax(0)
            if len(prefix) < LONGEST - 1:
                prefixes += [(*prefix, token) for token in range(1, VOCAB)]

    def sequences(self) -> list[tuple[int, ...]]:
        prefixes, ended = [()], []
        for prefix in prefixes:
            for token in range(VOCAB):
                grown = (*prefix, token)
                (ended if token == 0 or len(grown) == LONGEST else prefixes).append(grown)
        return ended

    def columns(self, sequences: list[tuple[int, ...]]) -> dict[str, Tensor]:
        """The arguments of `reweighted_entropy`, padded with numbers that must not be read."""
        names = ("old_log_probs", "new_log_probs", "old_entropy", "new_entropy")
        columns = {name: torch.full((len(sequences), LONGEST), float("nan"), dtype=torch.float64) for name in names}
        columns["mask"] = torch.zeros(len(sequences), LONGEST)
        for row, sequence in enumerate(sequences):
            for time, token in enumerate(sequence):
                for which, policy in zip(("old", "new"), self.policies, strict=True):
                    p = policy[sequence[:time]]
                    columns[f"{which}_log_probs"][row, time] = p[token].log()
                    columns[f"{which}_entropy"][row, time] = -(p * p.log()).sum()
                columns["mask"][row, time] = 1
        return columns

    def probability(self, which: int, sequence: tuple[int, ...]) -> float:
        return float(torch.stack([self.policies[which][sequence[:t]][y] for t, y in enumerate(sequence)]).prod())

    def mean_entropy(self, which: int, of: int) -> float:
        """E[Σ h]/E[L] by enumeration, with the entropies of one policy where the other one goes."""
        total = length = 0.0
        for sequence in self.sequences():
            p = self.probability(which, sequence)
            policies = [self.policies[of][sequence[:t]] for t in range(len(sequence))]
            total += p * sum(float(torch.special.entr(q).sum()) for q in policies)
            length += p * len(sequence)
        return total / length


@pytest.mark.parametrize("step", [0.01, 0.5, 3.0])
def test_numerator_and_denominator_are_unbiased_at_any_step(step: float) -> None:
    tree = Tree(0, step)
    sequences = tree.sequences()
    columns = tree.columns(sequences)
    old = torch.tensor([tree.probability(0, s) for s in sequences], dtype=torch.float64)
    new = torch.tensor([tree.probability(1, s) for s in sequences], dtype=torch.float64)
    assert float(old.sum()) == pytest.approx(1, abs=1e-12)  # the enumeration is complete
    weights = prefix_weights(columns["old_log_probs"], columns["new_log_probs"], columns["mask"])
    heights = torch.where(columns["mask"].bool(), columns["new_entropy"], 0.0)
    numerator, denominator = float(old @ (weights * heights).sum(1)), float(old @ weights.sum(1))
    # sums of 31 products in float64
    assert numerator == pytest.approx(float(new @ heights.sum(1)), abs=1e-12)
    assert denominator == pytest.approx(float(new @ columns["mask"].double().sum(1)), abs=1e-12)


def sample(tree: Tree, count: int, generator: torch.Generator) -> list[tuple[int, ...]]:
    sequences = tree.sequences()
    old = torch.tensor([tree.probability(0, s) for s in sequences])
    return [sequences[i] for i in torch.multinomial(old, count, replacement=True, generator=generator).tolist()]


def test_parts_add_up_and_many_rollouts_give_the_truth() -> None:
    tree = Tree(1, 1.0)
    rollouts = sample(tree, 20_000, torch.Generator().manual_seed(0))
    estimate = reweighted_entropy(**tree.columns(rollouts), group_ids=torch.arange(20_000) // 2)
    assert estimate.after == pytest.approx(estimate.before + estimate.fixed + estimate.shift, abs=1e-12)
    before, fixed, after = tree.mean_entropy(0, 0), tree.mean_entropy(0, 1), tree.mean_entropy(1, 1)
    for truth, part, error in (
        (fixed - before, estimate.fixed, estimate.fixed_error),
        (after - fixed, estimate.shift, estimate.shift_error),
        (after - before, estimate.fixed + estimate.shift, estimate.change_error),
    ):
        assert error is not None
        assert abs(part - truth) < 4 * error
        assert abs(truth) > 8 * error  # an estimate of zero would be noticed
    assert estimate.groups == 10_000
    assert 0.5 * estimate.tokens < estimate.effective_sample_size < estimate.tokens


def test_errors_are_the_spread_over_repetitions() -> None:
    tree, generator = Tree(2, 0.4), torch.Generator().manual_seed(0)
    draws = []
    for _ in range(300):
        rollouts = [s for s in sample(tree, 60, generator) for _ in range(2)]  # two equal rollouts in each group
        draws.append(reweighted_entropy(**tree.columns(rollouts), group_ids=torch.arange(120) // 2))
    for part, error in (("fixed", "fixed_error"), ("shift", "shift_error")):
        values = torch.tensor([getattr(draw, part) for draw in draws])
        stated = torch.tensor([getattr(draw, error) for draw in draws]).square().mean().sqrt()
        # 300 repetitions know a spread to 4 %; the linearisation of 60 groups adds a few per cent
        assert float(stated / values.std()) == pytest.approx(1, abs=0.15), part


def test_equal_policies_have_no_shift_and_full_size() -> None:
    tree = Tree(3, 0.0)
    columns = tree.columns(tree.sequences())
    estimate = reweighted_entropy(**columns, group_ids=torch.zeros(len(columns["mask"]), dtype=torch.long))
    assert estimate.fixed == estimate.shift == 0
    assert estimate.effective_sample_size == estimate.tokens
    assert estimate.fixed_error is estimate.shift_error is estimate.change_error is None  # a single group has none


def test_scores_are_those_of_the_model() -> None:
    model, batch = TinyModel(), step_batch(temperature=0.7)
    moved = {name: p + 0.1 for name, p in model.named_parameters()}
    log_probs, entropy = token_scores(ModelView(model, batch), moved)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
        logs = log_policies(model, batch)
    taken = logs.gather(-1, batch.completion_ids[batch.valid][:, None])[:, 0]
    torch.testing.assert_close(log_probs[batch.valid], taken, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(entropy[batch.valid], -(logs.exp() * logs).sum(-1), rtol=1e-12, atol=1e-13)
    assert not log_probs[~batch.valid].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new_log_probs": torch.zeros(2, 3)}, "new_log_probs: expected shape"),
        ({"group_ids": torch.zeros(3, dtype=torch.long)}, "group_ids: expected shape"),
        ({"mask": torch.zeros(2, 2)}, "mask: expected at least one token"),
        ({"new_entropy": torch.full((2, 2), float("nan"))}, "new_entropy: expected finite numbers"),
        ({"old_entropy": torch.zeros(2, 1)}, "old_entropy: expected shape"),
        ({"old_log_probs": torch.full((2, 2), -float("inf"))}, "finite log-probabilities"),
        ({"new_log_probs": torch.full((2, 2), 800.0)}, "finite weights"),
        ({"mask": torch.full((2, 2), 0.5)}, "mask: expected values 0 and 1"),
        ({"mask": torch.full((2, 2), float("nan"))}, "mask: expected values 0 and 1"),
        ({"group_ids": torch.tensor([0.0, float("nan")])}, "group_ids: expected integers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_named(changes: dict[str, Tensor], message: str) -> None:
    arguments = {name: torch.zeros(2, 2) for name in ("old_log_probs", "new_log_probs", "old_entropy", "new_entropy")}
    arguments |= {"mask": torch.ones(2, 2), "group_ids": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        reweighted_entropy(**arguments | changes)


def test_a_group_without_a_token_counts_for_nothing() -> None:
    tree = Tree(5, 0.3)
    rollouts = sample(tree, 6, torch.Generator().manual_seed(0))
    columns, groups = tree.columns(rollouts), torch.tensor([0, 0, 1, 1, 2, 2])
    columns["mask"][4:] = 0
    fewer = {name: column[:4] for name, column in columns.items()}
    expected = reweighted_entropy(**fewer, group_ids=groups[:4])
    estimate = reweighted_entropy(**columns, group_ids=groups)
    assert estimate == expected


def test_weights_whose_squares_overflow_have_an_effective_sample_size() -> None:
    """One context of weight e^600 counts for all others."""
    zeros, new = torch.zeros(2, 2), torch.tensor([[600.0, 0.0], [0.0, 0.0]])
    estimate = reweighted_entropy(zeros, new, zeros + 1, zeros + 1, zeros + 1, torch.tensor([0, 1]))
    assert estimate.effective_sample_size == pytest.approx(1, abs=1e-12)
