"""The reward function of a run: found by its name, and checked at every call."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entropy_theory.errors import RunError, invalid, one_line
from entropy_theory.rewards import checked_rewards
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
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise invalid("reward", "an importable module:function", f"{spec!r} ({kind}{one_line(error)})") from error
    if not callable(function):
        raise invalid("reward", "a callable", f"{spec!r}, a {type(function).__name__}")
    return function


def guarded_reward(reward: Reward, name: str, log_ids: bool = False) -> Reward:
    """Make a reward function raise an error that names it where it fails or returns no rewards.

    Args:
        reward: The function, plain or async, in TRL's form.
        name: How the user wrote it.
        log_ids: Whether to add the completions' token ids to TRL's completion log, which holds their text alone.

    Returns:
        The function; called, it raises RunError where ``reward`` fails.

    Example:
        >>> guarded_reward(lambda completions: [1 / len(c) for c in completions], "my:reward")(completions=["", "a"])
        Traceback (most recent call last):
        ...
        entropy_theory.errors.RunError: reward my:reward raised ZeroDivisionError: division by zero (...)
    """

    def failed(error: BaseException) -> RunError:
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = (
            f"reward {name} raised {type(error).__name__}: {one_line(error)} ({place.filename}, line {place.lineno})"
        )
        return RunError(message)

    def checked(rewards: Any, arguments: dict[str, Any]) -> list[float | None]:
        if log_ids and "log_extra" in arguments:
            arguments["log_extra"]("completion_ids", [list(ids) for ids in arguments["completion_ids"]])
        try:
            return checked_rewards(rewards, len(arguments["completions"]))
        except ValueError as error:
            raise RunError(f"reward {name} returned {error}") from None

    if inspect.iscoroutinefunction(reward):

        @functools.wraps(reward)
        async def guarded_async(**arguments: Any) -> Any:
            try:
                rewards = await reward(**arguments)
            except (Exception, SystemExit) as error:
                raise failed(error) from error
            return checked(rewards, arguments)

        return guarded_async

    @functools.wraps(reward)
    def guarded(**arguments: Any) -> Any:
        try:
            rewards = reward(**arguments)
        except (Exception, SystemExit) as error:
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
