"""The reward function of a run: found by its name, and checked at every call."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entropy_theory.errors import RunError, invalid
from entropy_theory.testbed import sum_task

Reward = Callable[..., Any]


def load_reward(spec: str) -> Reward:
    """Import a reward function from ``module:function``; the current folder is on the path.

    Raises:
        ValueError: The form is wrong, the module cannot be imported, or the name is not callable.

    Example:
        >>> load_reward("entropy_theory.testbed.sum_task:reward")(["1+2+3+4"], [10])
        [1.0]
    """
    module_name, separator, name = spec.partition(":")
    if not separator or not module_name or not name:
        raise invalid("reward", "module:function", repr(spec))
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise invalid("reward", "an importable module:function", f"{spec!r} ({error})") from None
    if not callable(function):
        raise invalid("reward", "a callable", f"{spec!r}, a {type(function).__name__}")
    return function


def guarded_reward(reward: Reward, name: str) -> Reward:
    """Let a reward function be named that raises, or does not return one finite number (or None) per completion.

    Args:
        reward: The function, plain or async, in TRL's form.
        name: How the user wrote it.

    Returns:
        The function; called, it raises RunError where ``reward`` fails.

    Example:
        >>> guarded_reward(lambda completions: [1 / len(c) for c in completions], "my:reward")(completions=["", "a"])
        Traceback (most recent call last):
        ...
        entropy_theory.errors.RunError: reward my:reward raised ZeroDivisionError: division by zero (...)
    """

    def failed(error: Exception) -> RunError:
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"reward {name} raised {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        return RunError(message)

    def checked(rewards: Sequence[float | None], arguments: dict[str, Any]) -> Sequence[float | None]:
        count = len(arguments["completions"]) if "completions" in arguments else len(rewards)
        if len(rewards) != count:
            raise RunError(f"reward {name} returned {len(rewards)} rewards for {count} completions")
        # None means "does not apply"; TRL would count NaN as that, and let an infinity spoil the whole group.
        wrong = [r for r in rewards if r is not None and not math.isfinite(r)]
        if wrong:
            raise RunError(f"reward {name} returned {wrong[0]}, {len(wrong)} of {count} rewards are not finite")
        return rewards

    if inspect.iscoroutinefunction(reward):

        @functools.wraps(reward)
        async def guarded_async(**arguments: Any) -> Any:
            try:
                rewards = await reward(**arguments)
            except Exception as error:
                raise failed(error) from error
            return checked(rewards, arguments)

        return guarded_async

    @functools.wraps(reward)
    def guarded(**arguments: Any) -> Any:
        try:
            rewards = reward(**arguments)
        except Exception as error:
            raise failed(error) from error
        return checked(rewards, arguments)

    return guarded


class SumReward:
    """The sum task's reward, which also reports the distinct right answers of each group."""

    __name__ = "sum_task"

    def __init__(self, generations: int) -> None:
        self._generations = generations

    def __call__(self, completions: Sequence[str], target: Sequence[int], **extra: Any) -> list[float]:
        """Give 1.0 for a right answer and 0.0 otherwise."""
        log_metric = extra.get("log_metric")
        if log_metric is not None and len(completions) % self._generations == 0:
            log_metric("distinct_right", sum_task.mean_distinct_right(target, completions, self._generations))
        return sum_task.reward(completions, target=target)
