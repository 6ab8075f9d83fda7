"""The metrics of a run: a line per step, held to the checkpoints by a digest, and the means of the last steps."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from entropy_theory import records
from entropy_theory.errors import invalid
from entropy_theory.training.inputs import Progress

LAST = 10  # steps that "final" averages over


class Recorder(TrainerCallback, ExportableState):
    """Writes a line per step and moves the progress bar; a checkpoint holds the digest of the lines so far.

    Args:
        path: The file of lines.
        steps: Steps in all.
        progress: Called with (steps done, steps in all, entropy and reward).
    """

    def __init__(self, path: Path, steps: int, progress: Progress | None = None) -> None:
        self._path, self._steps, self._progress = path, steps, progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Record the numbers of a training step."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        numbers = {k: v for k, v in logs.items() if isinstance(v, int | float)}
        # JSON has no NaN: a metric that is not a number is recorded as null, not left out.
        line = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        records.append_line(self._path, {"step": state.global_step, **line})
        if self._progress is not None:
            words = (f"{name} {line[name]:.3f}" for name in ("entropy", "reward") if line.get(name) is not None)
            self._progress(state.global_step, self._steps, ", ".join(words))

    def state(self) -> dict[str, Any]:
        """What the trainer keeps in ``trainer_state.json`` of a checkpoint: length and SHA-256 of the lines."""
        content = self._path.read_bytes() if self._path.exists() else b""
        return {"args": {}, "attributes": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}


def cut_back(path: Path, checkpoint: Path | None) -> None:
    """Drop the lines that were written after a checkpoint, or all of them if there is none.

    Raises:
        ValueError: The lines before the checkpoint are not those that were there when it was written.
    """
    if checkpoint is None:
        path.unlink(missing_ok=True)
        return
    trainer_state = records.read_record(checkpoint / "trainer_state.json", "stateful_callbacks")
    try:
        kept = trainer_state["stateful_callbacks"][Recorder.__name__]["attributes"]
        length, digest = int(kept["bytes"]), kept["sha256"]
    except (KeyError, TypeError, ValueError):
        raise invalid("out", "a checkpoint that holds the digest of the metrics", checkpoint) from None
    content = path.read_bytes()[:length] if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != digest:
        found = "other lines" if path.exists() else "no such file"
        raise invalid(str(path), f"the lines that were there when {checkpoint.name} was written", found)
    os.truncate(path, length)


def final_means(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Average the last steps."""
    last = lines[-LAST:]
    final = {}
    names = ["entropy", "reward", "distinct_right", "entropy_control/dropped_share", "entropy_control/slope"]
    names += sorted({name for line in last for name in line if name.startswith("entropy_control/observed/")})
    for name in names:
        values = [line[name] for line in last if line.get(name) is not None]
        if values:
            final[name.removeprefix("entropy_control/")] = sum(values) / len(values)
    return final
