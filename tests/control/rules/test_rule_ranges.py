"""Every rule at the ends of its declared ranges: it refuses a combination in one line, or ends with finite numbers."""

from __future__ import annotations

import math
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from control_batches import batches, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_theory.control import Rule, TokenBatch, rule, rule_class, rule_names
from entropy_theory.control.parameters import Choice, Number

pytestmark = pytest.mark.no_cover  # laws on many inputs: counting lines takes as long, and adds none


def values_of(check: Number | Choice) -> list[object]:
    """The ends of a range, a step inside, and the middle of it; every choice."""
    if isinstance(check, Choice):
        return list(check.values)
    low = math.nextafter(check.low, math.inf) if check.above else check.low
    ends = [low, check.high, math.nextafter(check.high, -math.inf), max(check.low, min(check.high, 0.5))]
    inside = [end for end in ends if check.low < end <= check.high or (end == check.low and not check.above)]
    return [*inside, *([None] if check.optional else [])]


def settings_of(name: str) -> st.SearchStrategy[dict[str, object]]:
    """Any parameters, each at its default or at an end of its range."""
    optional = {
        f.name: st.sampled_from(values_of(f.metadata["check"]))
        for f in fields(rule_class(name))
        if isinstance(f.metadata["check"], Number | Choice)
    }
    required = {"fraction": optional.pop("fraction")} if name == "random-mask" else {}
    return st.fixed_dictionaries(required, optional=optional)


def finite(rule_: Rule, batch: TokenBatch, state: object) -> object:
    started = time.perf_counter()
    out = rule_.apply(batch, generator=torch.Generator().manual_seed(0), state=state)
    assert time.perf_counter() - started < 20, rule_  # 2,000 steps of a search at most; a loop without end takes longer
    for tensor in (out.coefficients, out.entropy_coefficients, out.objective):
        assert tensor is None or torch.isfinite(tensor).all(), rule_
    assert all(math.isfinite(value) for value in out.metrics.values()), (rule_, out.metrics)
    assert rule(str(rule_)) == rule_
    return out.state


@pytest.mark.parametrize("name", rule_names())
@settings(max_examples=30)
@given(data=st.data(), batch=batches())
def test_extremes_of_the_declared_ranges(name: str, data: st.DataObject, batch: TokenBatch) -> None:
    chosen = data.draw(settings_of(name))
    try:
        extreme = rule(name, **chosen)
    except ValueError as error:  # ends that exclude each other
        assert str(error).startswith(f"{name} "), error  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return
    more = {"grpo_curvature": batch.centered_discriminant, "rollout_log_probs": batch.old_log_probs}
    curved = replace(batch, **more)
    state = None
    for dtype in (torch.float64, torch.float32):
        cast = {f.name: getattr(curved, f.name) for f in fields(curved)}
        cast = {n: v.to(dtype) if v is not None and v.is_floating_point() else v for n, v in cast.items()}
        state = finite(extreme, TokenBatch(**cast), state)


@pytest.mark.parametrize("move", [-3000.0, -150.0, 60.0, 400.0])
@pytest.mark.parametrize("name", rule_names())
def test_policies_far_from_the_one_that_sampled(name: str, move: float) -> None:
    """An importance ratio may be e^−3000 or e^400, of all tokens at once; in float32 e^89 is infinite."""
    batch, far = random_batch(3), min(move, 0.0)
    log_probs, old = batch.log_probs + far, batch.log_probs + far - move
    moved = replace(batch, log_probs=log_probs, old_log_probs=old, rollout_log_probs=old)
    moved = replace(moved, grpo_curvature=batch.centered_discriminant)
    cast = {f.name: getattr(moved, f.name) for f in fields(moved)}
    cast = {n: v.float() if v is not None and v.is_floating_point() else v for n, v in cast.items()}
    finite(rule(name, **({"fraction": 0.4} if name == "random-mask" else {})), TokenBatch(**cast), None)


NUMBERS = [
    pytest.param(name, f.name, f.metadata["check"], id=f"{name} {f.name}")
    for name in rule_names()
    for f in fields(rule_class(name))
    if isinstance(f.metadata.get("check"), Number)
]


@pytest.mark.parametrize(("name", "parameter", "check"), NUMBERS)
def test_what_lies_beyond_a_range_is_refused_in_one_line(name: str, parameter: str, check: Number) -> None:
    beyond = [math.inf, -math.inf, math.nan, 1e308, -1e308, 10**400, "x", True, [], 1j, np.float64("nan")]
    beyond += [math.nextafter(check.high, math.inf), check.low if check.above else math.nextafter(check.low, -math.inf)]
    for value in beyond:
        with pytest.raises(
            ValueError, match=rf"^{name} {parameter}: expected a number in [\[(].*\], received"
        ) as caught:
            rule(name, **{parameter: value})
        assert "\n" not in str(caught.value)


def test_numpys_numbers_are_numbers() -> None:
    for kind in (np.float64, np.float32, np.int64, np.float16):
        made = rule("clip-b", mu=kind(2))
        assert made == rule("clip-b(mu=2)")
        assert str(made) == "clip-b(mu=2)"


def test_a_search_takes_at_most_a_thousand_steps() -> None:
    batch = random_batch(0)
    for bad in ("upper_step=1e-9", "lower_step=1e-7", "upper_max=1e9"):
        with pytest.raises(ValueError, match=r"^bapo (upper|lower)_step: expected 0, or at least .* in 1000 steps"):
            rule(f"bapo({bad})")
    slow = rule("bapo(target=1e9, upper_step=0.0008)")
    assert slow.apply(batch).metrics["upper"] == 2.0
