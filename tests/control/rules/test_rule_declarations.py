"""What a rule declares is true: the scope it must see at once, and whether it reads the entropy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from control_batches import EVERY_METHOD, map_tokens, random_batch

from entropy_theory.control import RuleOutput, TokenBatch, rule, rule_names

pytestmark = pytest.mark.no_cover  # laws on many inputs: counting lines takes as long, and adds none

# Settings at which a rule acts on a small batch, so that what it needs shows.
ACTING = (
    "none",
    "clip-b(mu=0.73)",
    "clip-v(mu=0.31, max_fraction=None)",
    "keep-sign",
    "ppo-clip(epsilon_low=0.05, epsilon_high=0.05)",
    "clip-higher(epsilon_high=0.05)",
    "random-mask(fraction=0.4)",
    "random-mask(match='clip-b(mu=0.3)')",
    "lopti",
    "stare(target=None)",
    "entropy-bonus(coefficient=0.1)",
    "keep-sign|entropy-bonus(coefficient=0.1, over='kept')",
    "entropy-budget(floor=0.01)",
    "entropy-budget(target=1.0)",
    "sapo",
    "bapo(lower_step=0.2)",
)
SPECS = tuple(dict.fromkeys((*EVERY_METHOD, *ACTING)))
SCOPES = ("token", "sequence", "batch")


def with_holes(batch: TokenBatch) -> TokenBatch:
    """Leave every third column out, as tool calls do inside a completion."""
    column = torch.arange(batch.log_probs.shape[1])
    return replace(batch, completion_mask=batch.completion_mask & (column % 3 != 1))


BATCHES = (random_batch(0), with_holes(random_batch(1)))


def specs_of(name: str) -> list[str]:
    return [spec for spec in SPECS if rule(spec).name.split("|")[-1] == name]


def apply(spec: str, batch: TokenBatch) -> RuleOutput:
    return rule(spec).apply(batch, generator=torch.Generator().manual_seed(0))


def decisions(out: RuleOutput) -> tuple[torch.Tensor, ...]:
    zero = torch.zeros_like(out.coefficients)
    entropy = zero if out.entropy_coefficients is None else out.entropy_coefficients
    objective = zero if out.objective is None else out.objective
    kept = out.counted_mask if out.keep_mask is None else out.keep_mask
    return out.coefficients, entropy, objective, kept, out.counted_mask


def apart(spec: str, batch: TokenBatch, scope: str) -> tuple[torch.Tensor, ...]:
    """The decisions when the rule sees one row, or one token, at a time."""
    whole = [torch.zeros_like(value) for value in decisions(apply(spec, batch))]
    columns = [slice(t, t + 1) for t in range(batch.log_probs.shape[1])] if scope == "token" else [slice(None)]
    for row in range(batch.log_probs.shape[0]):
        for column in columns:
            place = (slice(row, row + 1), column)
            part = map_tokens(batch, lambda value, at=place: value[at], lambda value, at=place: value[at[0]])
            if part.completion_mask.any():
                for value, own in zip(whole, decisions(apply(spec, part)), strict=True):
                    value[place] = own
    return tuple(whole)


def agree(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    # A vectorised exp may round the last bit by a token's place in its row: 4e-15 of the value.
    close = (torch.allclose(a.double(), b.double(), rtol=4e-15, atol=0) for a, b in zip(one, other, strict=True))
    return all(close)


@pytest.mark.parametrize("spec", SPECS)
def test_the_declared_scope_is_enough(spec: str) -> None:
    scope = rule(spec).scope
    for batch in BATCHES:
        for narrower in SCOPES[SCOPES.index(scope) : 2]:
            assert agree(decisions(apply(spec, batch)), apart(spec, batch, narrower)), narrower


def test_no_rule_declares_a_wider_scope_than_it_needs() -> None:
    for name in rule_names():
        specs = specs_of(name)
        for scope in {rule(spec).scope for spec in specs} - {"token"}:
            narrower = SCOPES[SCOPES.index(scope) - 1]
            needed = [
                # a state is made of the whole step, whatever this step's coefficients are
                apply(spec, batch).state is not None
                or not agree(decisions(apply(spec, batch)), apart(spec, batch, narrower))
                for spec in specs
                if rule(spec).scope == scope
                for batch in BATCHES
            ]
            assert any(needed), (name, scope)
        assert specs, name


def with_other_entropy(batch: TokenBatch) -> TokenBatch:
    return replace(batch, entropy=batch.entropy.flip(0, 1) + 0.7)


def test_a_rule_lists_the_entropy_exactly_if_it_reads_it() -> None:
    for name in rule_names():
        specs = specs_of(name)
        for reads in {"entropy" in rule(spec).needs for spec in specs}:
            changed = []
            for spec in (spec for spec in specs if ("entropy" in rule(spec).needs) == reads):
                for batch in BATCHES:
                    # with the exact S at hand, a rule that reads S would not look at H
                    bare = replace(batch, discriminant=None) if reads else batch
                    one, other = apply(spec, bare), apply(spec, with_other_entropy(bare))
                    changed.append(not agree(decisions(one), decisions(other)) or one.metrics != other.metrics)
            assert any(changed) == reads, (name, reads)


def test_what_a_parameter_narrows() -> None:
    assert rule("advantage-reweighting(form='sigmoid-negative')").scope == "batch"
    assert rule("entropy-ratio(drop_fraction=0.1)").scope == "batch"
    assert rule("high-entropy(scope='sequence')").scope == "sequence"
    assert rule("ppo-clip|gspo").scope == "sequence"
    assert rule("clip-b|ppo-clip").scope == "batch"
    batch_part, live_part = rule("clip-b|ppo-clip|dro").split()
    assert (batch_part.scope, live_part.scope) == ("batch", "token")
