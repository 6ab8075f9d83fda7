"""Checkpoints that are whole or absent: staged beside their place, listed in a manifest, renamed at the end.

The trainer's own checkpoints appear file by file, and a missing random-number, optimizer or scheduler file is passed
over in silence when training resumes: the run then ends with other numbers. Here a checkpoint without its manifest, or
with a file missing or cut short, raises an error that names it.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import SaveStrategy

from entropy_theory import __version__, records
from entropy_theory.errors import RunError, invalid

if TYPE_CHECKING:
    _Trainer = Any  # the mixin reads what the trainer behind it has
else:
    _Trainer = object

MANIFEST = "entropy_control.json"
STAGING = ".staging"
FORMAT = 2
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint: what belongs to it and how long each file is.

    Args:
        folder: The staged checkpoint with all its files.
        content: What else to keep, such as the rule and its state.
    """
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    records.write_json(folder / MANIFEST, {"format": FORMAT, "version": __version__, **content, "files": files})


def put_in_place(staged: Path, target: Path) -> None:
    """Rename a sealed checkpoint to its name; one of the same step that is there already is replaced."""
    if target.exists():
        target.rename(staged.parent / "replaced")  # a kill while it is deleted must not leave half of it in place
    staged.rename(target)
    shutil.rmtree(staged.parent, ignore_errors=True)


def rotate(folder: Path, limit: int | None, best: str | None = None) -> None:
    """Delete the oldest checkpoints beyond the limit, never the newest and never the best.

    Written here because transformers before 5 has no function for it.

    Args:
        folder: Where the checkpoints are.
        limit: How many may stay; None or 0: all.
        best: The trainer's best checkpoint.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     for step in (5, 10, 15, 20):
        ...         Path(folder, f"checkpoint-{step}").mkdir()
        ...     rotate(folder, 2, best=f"{name}/checkpoint-5")
        ...     sorted(path.name for path in folder.iterdir())
        ['checkpoint-20', 'checkpoint-5']
    """
    found = _found(folder)
    spared = {found[-1], Path(best)} if found and best else set(found[-1:])
    spare = [path for path in found if path not in spared]
    for path in spare[: max(0, len(found) - limit) if limit else 0]:
        shutil.rmtree(path, ignore_errors=True)


def open_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest and check that every file is there in full.

    Args:
        folder: The checkpoint.

    Returns:
        The manifest.

    Raises:
        ValueError: There is no manifest, it is of another format or release, or a file is missing or of another length.
    """
    if not (folder / MANIFEST).is_file():
        raise invalid("resume_from_checkpoint", f"a whole checkpoint, with {MANIFEST}", folder)
    manifest = records.read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise invalid(
            "resume_from_checkpoint", f"a checkpoint of format {FORMAT}", f"{folder}: {manifest.get('format')}"
        )
    if manifest["version"] != __version__:
        raise invalid(
            "resume_from_checkpoint",
            f"a checkpoint of entropy_theory {__version__}",
            f"{folder}: {manifest['version']}",
        )
    for name, size in manifest["files"].items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            received = "no such file" if found is None else f"{found} bytes"
            raise invalid("resume_from_checkpoint", f"{folder / name} with {size} bytes", received)
    return dict(manifest)


def boundary(args: Any) -> int:
    """Count the optimizer steps from one generation batch to the next: only between them is resuming exact.

    Args:
        args: TRL's GRPOConfig.

    Example:
        >>> from types import SimpleNamespace
        >>> boundary(SimpleNamespace(steps_per_generation=3, num_iterations=1, gradient_accumulation_steps=2))
        3
    """
    return math.lcm(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps) // (
        args.gradient_accumulation_steps
    )


def round_save_steps(args: Any) -> None:
    """Let checkpoints fall between generation batches: only there does a resumed run repeat the undisturbed one."""
    if args.save_strategy != SaveStrategy.STEPS:
        return
    period = boundary(args)
    if args.save_steps < 1:
        raise invalid("save_steps", "a number of steps (a share of the run is not supported)", args.save_steps)
    rounded = -(-int(args.save_steps) // period) * period
    if rounded != args.save_steps:
        warnings.warn(
            f"save_steps: {args.save_steps} rounded to {rounded}, a multiple of the {period} optimizer steps of a "
            "generation batch; a checkpoint inside a batch could not be resumed exactly",
            stacklevel=4,
        )
        args.save_steps = rounded


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint that was put in place; None when there is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (5, 10):
        ...         Path(folder, f"checkpoint-{step}").mkdir()
        ...     latest_checkpoint(Path(folder)).name
        'checkpoint-10'
    """
    found = _found(folder)
    return found[-1] if found else None


def _found(folder: Path) -> list[Path]:
    """List the checkpoints, oldest first."""
    named = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(named, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """Read the step from a checkpoint's name.

    Example:
        >>> checkpoint_step(Path("run/checkpoint-40"))
        40
    """
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise invalid("resume_from_checkpoint", "a folder named checkpoint-STEP", folder)
    return int(match[1])


class SafeCheckpoints(_Trainer):
    """Mixin: checkpoints are whole, of one rule, and never of a model whose loss or gradient was not a number."""

    _staging: str | None = None
    _epochs_done = 0

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as the trainer does; a checkpoint to resume from must be whole and of the same rule.

        Raises:
            ValueError: The checkpoint is incomplete, or was written under another rule or release.
            RunError: The loss or the gradient is not a number, or a checkpoint cannot be written. Earlier checkpoints
                stay as they are.
        """
        if resume_from_checkpoint is True:
            newest = latest_checkpoint(Path(self.args.output_dir))
            if newest is None:
                raise invalid("resume_from_checkpoint", f"a checkpoint in {self.args.output_dir}", "none")
            resume_from_checkpoint = str(newest)
        if resume_from_checkpoint:
            manifest = open_checkpoint(Path(resume_from_checkpoint))
            self._restore_control(manifest)
            self._epochs_done = manifest["epochs"]
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        # TRL's sampler draws one permutation per epoch from a generator that no checkpoint holds: without this, a run
        # resumed after its first epoch would see the prompts in the order of the first epoch again.
        for _ in range(self._epochs_done):
            next(iter(sampler), None)
        return sampler

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Stop at a loss that is not a number, before the optimizer has seen its gradient."""
        loss = super().training_step(*args, **kwargs)
        self._stop_unless_finite("loss", loss)
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> Any:
        # Called between the optimizer's step and the saving. In float16 the loss scaler skips such steps by itself.
        if grad_norm is not None and not self.args.fp16:
            self._stop_unless_finite("gradient norm", grad_norm)
        return super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _stop_unless_finite(self, name: str, value: Any) -> None:
        if not math.isfinite(value):
            step = self.state.global_step + (name == "loss")
            raise RunError(f"{name}: {float(value)} in step {step}; nothing of this step was saved")

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        root = Path(self._get_output_dir(trial))
        self._staging = str(root / STAGING)
        try:
            if self.accelerator.is_main_process:
                shutil.rmtree(self._staging, ignore_errors=True)  # what a killed run left
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                staged = Path(self._staging) / name
                # An epoch ends with n/n = 1, so the number is whole there.
                seal(staged, {**self._control_state(), "epochs": int(self.state.epoch)})
                put_in_place(staged, root / name)
                rotate(root, self.args.save_total_limit, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()
        except Exception as error:
            # Writers put a full disk in words of their own, so the free space is named beside them.
            free = shutil.disk_usage(root).free
            shutil.rmtree(self._staging, ignore_errors=True)
            said = " ".join(str(error).split())[:200]
            raise RunError(f"{root / name} could not be written ({free} bytes free): {said}") from error
        finally:
            self._staging = None
