"""Score and threshold of a mask rule say what the rule itself says, at every setting and between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from control_batches import batches
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_theory.control import TokenBatch, rule, rule_class, rule_names
from entropy_theory.control.thresholds import scan_threshold

pytestmark = pytest.mark.no_cover  # laws on many inputs: counting lines takes as long, and adds none

BATCH = TokenBatch.load(Path(__file__).parent / "grpo_batch.safetensors")
MASKS = (
    "clip-b(mu=0.7)",
    "clip-b(side='both', advantages='all', denominator='valid')",
    "clip-b(drop_fraction=0.1)",
    "clip-v(mu=0.7, max_fraction=None)",
    "clip-v(mu=0.3, max_fraction=0.05)",
    "clip-v(drop_fraction=0.1, side='both')",
    "high-entropy",
    "high-entropy(scope='sequence', strict=True, denominator='kept')",
    "random-mask(fraction=0.2)",
)
FLOOR = "entropy-floor(floor=0.5, gain=1)"


def keep_mask(spec: str, batch: TokenBatch, **changed: float) -> torch.Tensor:
    one = replace(rule(spec), **changed)
    return one.apply(batch, generator=torch.Generator().manual_seed(0)).keep_mask


def test_every_mask_fixed_once_per_batch_has_a_threshold() -> None:
    # one has it once a fraction is given; a sign and a pass have nothing to move
    without = {"random-mask", "keep-sign", "lopti"}
    for name in rule_names():
        cls = rule_class(name)
        if "mask" in cls.kind and cls.phase == "batch" and name not in without:
            assert cls().threshold_parameter in cls.__dataclass_fields__, name
    assert rule("random-mask(match='clip-b')").threshold_parameter == rule("steer").threshold_parameter == ""


@pytest.mark.parametrize("spec", [*MASKS, FLOOR])
def test_score_and_threshold_reproduce_the_mask(spec: str) -> None:
    """On a batch of a real GRPO run, at every setting of the default grid; the own setting is the rule itself."""
    found = scan_threshold(rule(spec), BATCH)
    assert 20 < len(found.values) < 100
    for k, value in enumerate(found.values):
        kept = keep_mask(spec, BATCH, **{found.parameter: value})
        assert torch.equal(BATCH.completion_mask & (found.scores <= k), kept)
        assert found.dropped[k] == int((BATCH.completion_mask & ~kept).sum())
    assert torch.equal(BATCH.completion_mask & (found.scores <= found.own), keep_mask(spec, BATCH))
    if spec == FLOOR:  # begins where every token that lowers entropy is dropped
        quadrants = BATCH.quadrants()
        assert found.dropped[0] == int(((quadrants == 1) | (quadrants == 4)).sum())
    else:
        assert found.dropped[0] > 50  # the grid begins where the rule bites
    assert found.dropped[-1] == 0 or "strict" in spec  # and ends where it does not; H > max H keeps none of a row
    assert list(found.dropped) == sorted(found.dropped, reverse=True)


@pytest.mark.parametrize("spec", [*MASKS, FLOOR])
@settings(max_examples=15)
@given(batch=batches(), data=st.data())
def test_between_two_settings_only_tokens_between_them_change(
    spec: str, batch: TokenBatch, data: st.DataObject
) -> None:
    shares = st.floats(0, 1) if "mu" not in rule(spec).threshold_parameter else st.floats(0, 4)
    low, middle, high = sorted(data.draw(st.tuples(shares, shares, shares)))
    found = scan_threshold(rule(spec), batch, [low, high])
    order = sorted(found.values, key=found.values.index)
    kept = keep_mask(spec, batch, **{found.parameter: middle})
    first, last = (k for k, value in enumerate(order) if value in (low, high)) if low < high else (0, 0)
    if low < middle < high:
        assert not (kept & (found.scores > last)).any()  # dropped even by the mildest
        assert kept[batch.completion_mask & (found.scores <= first)].all()  # kept even by the strictest


def test_rules_without_one_are_refused() -> None:
    with pytest.raises(ValueError, match="a mask rule with a threshold to move, received 'steer'"):
        scan_threshold(rule("steer"), BATCH)
    with pytest.raises(ValueError, match="settings: expected an integer in"):
        scan_threshold(rule("clip-b"), BATCH, settings=255)
