"""What breaks a run from outside, said in one line: a reward that raises, a full disk, a SIGTERM.

Nothing is lost in any of these: the last whole checkpoint stays, and the same command goes on from it.
"""

from __future__ import annotations

import functools
import inspect
import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from entropy_theory.bridge.trl import checkpoints
from entropy_theory.errors import RunError

Reward = Callable[..., Any]


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


class Termination(TrainerCallback):
    """Takes a SIGTERM as preemption: the run goes on to the next generation boundary, saves, and stops there."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.began = self.asked = self.stopped = False

    def ask(self, *_: Any) -> None:
        """Handle the signal; a second one ends the process at once."""
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note that refusals are over and the run has begun."""
        self.began = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop when any rank was asked to and a resumed run would repeat this one to the bit."""
        import torch

        accelerator = self._trainer.accelerator
        asked = self.asked
        if accelerator.num_processes > 1:
            asked = bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum") > 0)
        if asked and state.global_step % checkpoints.boundary(args) == 0 and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let a run that was stopped not pass for a finished one."""
        if self.stopped:
            raise RunError("stopped by SIGTERM", status=128 + signal.SIGTERM)


@contextmanager
def explained(trainer: Any, out: Path) -> Iterator[None]:
    """Say in one line why a run broke off and where it goes on; a refusal before the first step passes as it is.

    Args:
        trainer: The trainer, which gets a callback.
        out: Where its checkpoints are.

    Raises:
        RunError: The run broke off, or was stopped by SIGTERM (status 143).
    """
    termination = Termination(trainer)
    trainer.add_callback(termination)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, termination.ask) if main else None
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        if not (termination.began or isinstance(error, RunError)):
            raise
        said = f"after {trainer.state.global_step} steps: {' '.join(str(error).split())[:500]}"
        last = checkpoints.latest_checkpoint(out)
        way_on = f"the same command goes on from {last.name}" if last else "there is no checkpoint yet"
        raise RunError(f"{said}; {way_on}", status=getattr(error, "status", 1)) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
