"""A mask rule at many settings of its threshold: one score per token says at which of them it is dropped.

A rule that names its `threshold_parameter` promises that its masks are nested: as the parameter moves one way, no
dropped token comes back. A token is then described by the number of settings that drop it, whatever the rule measures,
caps and ties included; nothing about the rule needs to be known to move its threshold afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from entropy_theory.control.base import Rule
from entropy_theory.control.batch import TokenBatch
from entropy_theory.control.flow import RuleOutput
from entropy_theory.control.rules.none import NoControl
from entropy_theory.errors import invalid

MOST_SETTINGS = 255
"""Scores are bytes."""

_SHARES = ("share", "fraction", "drop_fraction")  # thresholds that live in [0, 1]
_FEW = (0.001, 0.002, 0.005, 0.01, 0.015, 1.0)  # of them, besides the even ones: rules drop few tokens
_SMALLEST, _LARGEST = 1e-3, 1e6


@dataclass(frozen=True, eq=False)
class ThresholdScan:
    """The masks of one rule over settings of its threshold.

    A valid token is dropped at setting k  ⇔  its score > k.

    Attributes:
        parameter: The parameter's name.
        values: Its settings, ordered from the one that drops most to the one that drops least.
        own: The place of the rule's own setting.
        scores: The number of settings that drop the token, (B, T); 0 at masked positions.
        dropped: How many tokens each setting drops.
        denominators: How many tokens the token mean counts at each setting.
    """

    parameter: str
    values: tuple[float, ...]
    own: int
    scores: UInt8[Tensor, "B T"]
    dropped: tuple[int, ...]
    denominators: tuple[int, ...]


def scan_threshold(
    rule: Rule, batch: TokenBatch, values: Sequence[float] | None = None, *, settings: int = 61, seed: int = 0
) -> ThresholdScan:
    """Apply a mask rule at many settings of its threshold.

    Args:
        rule: A rule with a `threshold_parameter`.
        batch: The tokens.
        values: The settings; default: evenly spread from 0 to where the rule drops nothing (a share: to 1; or to
            the rule's own `threshold_end`). The rule's own setting is always among them.
        settings: How many to spread, 2 to 254.
        seed: Of rules that draw; the same for every setting.

    Returns:
        The settings, and for each token how many of them drop it.

    Raises:
        ValueError: The rule has no threshold, an argument is out of range, or the rule turns out to be no mask with
            nested drops.

    Example:
        >>> from entropy_theory.control import rule
        >>> S_c = torch.tensor([[0.1, -0.5, -0.6, 0.1]])
        >>> x = torch.zeros(1, 4)
        >>> batch = TokenBatch(x, x, torch.tensor([-1.0]), torch.ones(1, 4), centered_discriminant=S_c)
        >>> scan = scan_threshold(rule("clip-v(mu=1.7, max_fraction=None)"), batch, [0.0, 1.0, 2.0])
        >>> scan.values, scan.own, scan.scores.tolist()
        ((0.0, 1.0, 1.7, 2.0), 2, [[0, 2, 3, 0]])
    """
    name = rule.threshold_parameter
    if not name:
        raise invalid("rule", "a mask rule with a threshold to move", repr(str(rule)))
    if not 2 <= settings < MOST_SETTINGS:
        raise invalid("settings", f"an integer in [2, {MOST_SETTINGS - 1}]", settings)
    own = float(getattr(rule, name))

    def at(value: float) -> RuleOutput:
        changed = replace(rule, **{name: value})
        return changed.apply(batch, generator=torch.Generator().manual_seed(seed))

    given = values is not None
    if values is None:
        last = 1.0 if name in _SHARES else rule.threshold_end(batch)
        last = _end(lambda value: at(value).metrics["dropped"] > 0) if last is None else last
        step = _round_up(last / (settings - 1))
        values = [round(k * step, 12) for k in range(settings) if k * step < last + step * (name not in _SHARES)]
    ordered = sorted({*map(float, values), own, *(_FEW if name in _SHARES and not given else ())})
    if len(ordered) > MOST_SETTINGS:
        raise invalid("values", f"at most {MOST_SETTINGS} settings", len(ordered))
    if at(ordered[0]).metrics["dropped"] < at(ordered[-1]).metrics["dropped"]:
        ordered.reverse()
    valid, unmasked = batch.completion_mask, NoControl().apply(batch).coefficients
    scores, before = torch.zeros_like(valid, dtype=torch.uint8), valid
    dropped, denominators = [], []
    for value in ordered:
        out = at(value)
        drop = torch.zeros_like(valid) if out.keep_mask is None else valid & ~out.keep_mask
        # compared in full: a page that moves the threshold relies on both
        if bool((drop & ~before).any()) or not torch.equal(out.coefficients, unmasked.masked_fill(drop, 0.0)):
            raise invalid("rule", f"a mask whose drops are nested along {name}", f"{rule}, at {value:g}")
        scores, before = scores + drop.to(torch.uint8), drop
        dropped.append(int(out.metrics["dropped"]))
        denominators.append(int(out.denominator))
    return ThresholdScan(name, tuple(ordered), ordered.index(own), scores, tuple(dropped), tuple(denominators))


def _end(drops: Callable[[float], bool]) -> float:
    """Find a threshold beyond which nothing is dropped, and not far beyond."""
    high = 1.0
    while drops(high) and high < _LARGEST:
        high *= 2
    while high > _SMALLEST and not drops(high / 2):
        high /= 2
    low = high / 2
    for _ in range(4):
        middle = (low + high) / 2
        low, high = (middle, high) if drops(middle) else (low, middle)
    return high


def _round_up(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten.

    Example:
        >>> _round_up(0.031), _round_up(2.0)
        (0.05, 2.0)
    """
    power = 10.0 ** math.floor(math.log10(step))
    return next(round(m * power, 12) for m in (1, 2, 2.5, 5, 10) if m * power >= step * (1 - 1e-9))
