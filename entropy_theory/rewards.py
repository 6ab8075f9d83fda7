"""What counts as a reward: one finite number for each completion, or None where the function does not apply."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

LARGEST_REWARD = 1e15
"""Rewards beyond this have no deviation in float32, in which trainers square them."""


def reward_number(value: object) -> float | None:
    """Read one reward.

    Args:
        value: A real number of Python, NumPy or torch, or None.

    Raises:
        ValueError: It is of another kind, not finite, or larger than `LARGEST_REWARD`.

    Example:
        >>> reward_number(1), reward_number(None)
        (1.0, None)
        >>> reward_number("1")
        Traceback (most recent call last):
        ...
        ValueError: '1'
    """
    if value is None:
        return None
    shape = getattr(value, "shape", ())
    try:
        unreal = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
        if unreal or isinstance(value, str | bytes) or tuple(shape):  # NumPy would drop an imaginary part
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        text = f"an array of shape {tuple(shape)}" if shape else repr(value)
        raise ValueError(text if len(text) <= 40 else text[:39] + "…") from None
    if not abs(number) <= LARGEST_REWARD:  # NaN compares false
        raise ValueError(str(number))
    return number


def checked_rewards(values: Any, count: int) -> list[float | None]:
    """Check what a reward function returned: a sequence with one reward for each completion.

    Args:
        values: A list, a tuple, or a one-dimensional array or tensor.
        count: The number of completions.

    Raises:
        ValueError: The shape is another, or an entry is no reward; the message says what came.

    Example:
        >>> checked_rewards((1, None), 2)
        [1.0, None]
        >>> checked_rewards({"a": 1.0}, 1)
        Traceback (most recent call last):
        ...
        ValueError: a dict, not a list of numbers
    """
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ValueError(f"an array of shape {tuple(shape)} for {count} completions")
    if shape is None and (isinstance(values, str | bytes | bytearray | memoryview) or not isinstance(values, Sequence)):
        raise ValueError(f"a {type(values).__name__}, not a list of numbers")
    if len(values) != count:
        raise ValueError(f"{len(values)} rewards for {count} completions")
    rewards, wrong = [], []
    for value in values:
        try:
            rewards.append(reward_number(value))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(
            f"{wrong[0]}, {len(wrong)} of {count} rewards are not finite numbers up to {LARGEST_REWARD:g} or None"
        )
    return rewards
