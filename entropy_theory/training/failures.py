"""What breaks a run from outside, reported in one line: a reward that raises, a full disk, a SIGTERM.

Nothing is lost in any of these: the last whole checkpoint stays, and the same command resumes from it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from entropy_theory.bridge.trl import checkpoints
from entropy_theory.errors import RunError, one_line


class Termination(TrainerCallback):
    """Takes a SIGTERM as preemption: the run continues to the next generation boundary, saves, and stops there."""

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
    """Say in one line why a run broke off and where it resumes; a refusal before the first step passes as it is.

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
    except Exception as error:
        if not (termination.began or isinstance(error, RunError)):
            raise
        said = f"after {trainer.state.global_step} steps: {one_line(error, 500)}"
        last = checkpoints.latest_checkpoint(out)
        way_on = f"the same command resumes from {last.name}" if last else "there is no checkpoint yet"
        raise RunError(f"{said}; {way_on}", status=getattr(error, "status", 1)) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
