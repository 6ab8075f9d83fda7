"""Ball arithmetic, and branch and bound over boxes: what is certified holds for every real number of a region.

Needs python-flint (the extra `certify`), loaded when a certificate is first asked for. A statement is certified on a
box by halving it until an enclosure of the statement, wider than the truth by what rounding and the width of the box
add, decides each part. Where the statement touches a zero, an enclosure of its derivative there decides; no part is
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from entropy_theory.errors import missing_extra

Ball = Any  # flint.arb, which has no type stubs
Box = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Certificate:
    """Outcome of a branch and bound.

    Attributes:
        certified: Whether every part of the region was decided.
        region: The region, in words and numbers.
        parts: Boxes that were decided, or shown to lie outside the assumptions.
        by_derivative: Those decided by the derivative, next to a zero of the statement.
        undecided: A box that stayed open, if any.
    """

    certified: bool
    region: str
    parts: int
    by_derivative: int
    undecided: Box | None


def flint() -> Any:
    """Load python-flint, or raise the ImportError that names the extra.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return import_module("flint")
    except ImportError:
        raise missing_extra("python-flint", "certify") from None


@contextmanager
def precision(bits: int) -> Iterator[Any]:
    """Work at a precision of so many bits; yields flint's class of balls."""
    module = flint()
    before, module.ctx.prec = module.ctx.prec, bits
    try:
        yield module.arb
    finally:
        module.ctx.prec = before


def interval(arb: Any, low: float, high: float) -> Ball:
    """Return the ball that holds every number from low to high."""
    return arb(low).union(arb(high))


def branch_and_bound(
    start: Box,
    holds: Callable[[Box], str | None],
    region: str,
    weights: Sequence[float] | None = None,
    most: int = 3_000_000,
) -> Certificate:
    """Halve boxes along their widest side until each is decided.

    Args:
        start: The whole region.
        holds: How a box was decided ("value", "derivative", "outside"), or None.
        region: The region in words.
        weights: Scale of each side, for choosing the widest; default: the sides of the start.
        most: Boxes looked at before giving up.
    """
    scale = weights or [high - low or 1.0 for low, high in start]
    stack, parts, by_derivative = [start], 0, 0
    for _ in range(most):
        if not stack:
            return Certificate(True, region, parts, by_derivative, None)
        box = stack.pop()
        outcome = holds(box)
        if outcome is not None:
            parts += 1
            by_derivative += outcome == "derivative"
            continue
        side = max(range(len(box)), key=lambda i: (box[i][1] - box[i][0]) / scale[i])
        low, high = box[side]
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return Certificate(False, region, parts, by_derivative, box)
        stack.append((*box[:side], (low, middle), *box[side + 1 :]))
        stack.append((*box[:side], (middle, high), *box[side + 1 :]))
    return Certificate(not stack, region, parts, by_derivative, stack[-1] if stack else None)


def joined(parts: Sequence[Certificate], region: str) -> Certificate:
    """Join certificates of several boxes into one of their union."""
    undecided = next((part.undecided for part in parts if part.undecided is not None), None)
    return Certificate(
        all(part.certified for part in parts),
        region,
        sum(part.parts for part in parts),
        sum(part.by_derivative for part in parts),
        undecided,
    )
