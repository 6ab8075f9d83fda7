"""Checkpoints that are whole or known not to be, and that a resumed run continues from exactly.

The trainer's own checkpoints appear file by file, and a missing random-number, optimizer or scheduler file is passed
over in silence when training resumes: the run then ends with other numbers. Here a checkpoint is written where the
trainer and its callbacks expect it, with a manifest that says "incomplete" from the first moment and lists every file
with its digest at the end; only then are older checkpoints deleted. Inside a generation batch the rest of that batch is
kept too, so that training resumes exactly at any step.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import TrainOutput

from entropy_theory import __version__, records
from entropy_theory.errors import RunError, invalid

if TYPE_CHECKING:
    _Trainer = Any  # the mixin reads what the trainer behind it has
else:
    _Trainer = object

MANIFEST = "entropy_control.json"
FORMAT = 3
_NAME = re.compile(r"checkpoint-(\d+)")
_BATCH = "generation_batch_{rank}.pt"

Digests = dict[str, tuple[int, int, str]]
"""Of each file: its length, its time of modification, its SHA-256."""


def begin(folder: Path) -> None:
    """Mark a checkpoint as being written."""
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(folder / MANIFEST, {"format": FORMAT, "version": __version__, "complete": False})


def seal(folder: Path, content: Mapping[str, Any], known: Digests | None = None) -> Digests:
    """Complete the manifest of a checkpoint: what belongs to it, the length of each file and its digest.

    Args:
        folder: The checkpoint with all its files.
        content: What else to keep, such as the rule and its state.
        known: Digests of an earlier seal; files that have not changed since are not read again.

    Returns:
        The digests.
    """
    digests: Digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            name, status = path.relative_to(folder).as_posix(), path.stat()
            old = (known or {}).get(name)
            unchanged = old is not None and old[:2] == (status.st_size, status.st_mtime_ns)
            digests[name] = old if old and unchanged else (status.st_size, status.st_mtime_ns, _digest(path, sync=True))
    files = {name: {"bytes": size, "sha256": sha} for name, (size, _, sha) in digests.items()}
    manifest = {"format": FORMAT, "version": __version__, "complete": True, **content, "files": files}
    records.write_json(folder / MANIFEST, manifest | {"digest": _digest_of_manifest(manifest)})
    return digests


def _digest(path: Path, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_manifest(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in records.to_data(dict(manifest)).items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read a checkpoint's manifest; None where there is none, as in plain TRL's checkpoints.

    Raises:
        ValueError: It is unreadable, of another format, or of a checkpoint that was not written to its end.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = records.read_json(path)
    except ValueError:  # also text that is not UTF-8
        raise invalid("resume_from_checkpoint", "a whole checkpoint", f"{folder} with a damaged {MANIFEST}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        received = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise invalid("resume_from_checkpoint", f"a checkpoint of format {FORMAT}", f"{folder}: {received}")
    if not manifest.get("complete"):
        raise invalid("resume_from_checkpoint", "a whole checkpoint", f"{folder}, whose writing was interrupted")
    return manifest


def open_checkpoint(folder: Path, any_release: bool = False) -> dict[str, Any]:
    """Read a checkpoint's manifest and check that every file is what was written.

    Args:
        folder: The checkpoint.
        any_release: Accept one of another release of this package.

    Returns:
        The manifest.

    Raises:
        ValueError: There is no manifest, it is of another format or release, or a file is missing or has changed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise invalid("resume_from_checkpoint", f"a whole checkpoint, with {MANIFEST}", folder)
    if manifest["version"] != __version__ and not any_release:
        expected = f"a checkpoint of entropy_theory {__version__}"
        raise invalid("resume_from_checkpoint", expected, f"{folder}: {manifest['version']}")
    if manifest.get("digest") != _digest_of_manifest(manifest):
        raise invalid("resume_from_checkpoint", f"{folder / MANIFEST} as it was written", "another content")
    for name, written in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != written["bytes"]:
            received = "no such file" if size is None else f"{size} bytes"
            raise invalid("resume_from_checkpoint", f"{path} with {written['bytes']} bytes", received)
        if _digest(path) != written["sha256"]:
            raise invalid("resume_from_checkpoint", f"{path} as it was written", "another content of the same length")
    return manifest


def boundary(args: Any) -> int:
    """Count the optimizer steps from one generation batch to the next.

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


def latest_checkpoint(folder: Path, plain: bool = False) -> Path | None:
    """Find the newest checkpoint that was written to its end; None when there is none.

    Args:
        folder: Where the checkpoints are.
        plain: Accept checkpoints of plain TRL, which do not say whether they are whole.
    """

    def usable(path: Path) -> bool:
        try:
            return read_manifest(path) is not None or plain
        except ValueError:
            return False

    return next((path for path in reversed(_checkpoints(folder)) if usable(path)), None)


def _checkpoints(folder: Path) -> list[Path]:
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


class _AtItsEnd(Exception):  # noqa: N818  (no error: `train` ends on it)
    """A run was resumed that has no step left."""


class SafeCheckpoints(_Trainer):
    """Mixin: checkpoints are whole, of one rule, and never of a model whose loss or gradient was not a number."""

    _epochs_done = 0
    _limit_put_off: int | None = None  # args.save_total_limit while a checkpoint is written
    _sealed: Digests | None = None  # what the manifest of the checkpoint being written lists so far

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as the trainer does; a checkpoint to resume from must be whole and of the same rule.

        Resumed from the checkpoint of its last step, training ends at once; the trainer itself would take one more.
        With ``args.resume_with_new_rule`` a checkpoint of plain TRL, of another rule, or of another release is taken
        too, and a warning says what is lost.

        Raises:
            ValueError: The checkpoint is not whole, or was written under another rule or release, or without one.
            RunError: The loss or the gradient is not a number, or a checkpoint cannot be written. Earlier checkpoints
                stay as they are.
        """
        folder = Path(self.args.output_dir)
        if resume_from_checkpoint is True:
            newest = latest_checkpoint(folder) or latest_checkpoint(folder, plain=True)
            if newest is None:
                raise invalid("resume_from_checkpoint", f"a checkpoint in {folder}", "none")
            resume_from_checkpoint = str(newest)
        if resume_from_checkpoint:
            self._resume_control(Path(resume_from_checkpoint))
        if self.accelerator.is_main_process:
            for path in _checkpoints(folder):
                if _interrupted(path):
                    shutil.rmtree(path, ignore_errors=True)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        except _AtItsEnd:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._load_best_model()
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            self.is_in_train = False
            return TrainOutput(self.state.global_step, 0.0, {})

    def _resume_control(self, folder: Path) -> None:
        """Take up what the checkpoint holds for us; what the trainer holds, it reads itself."""
        other = bool(getattr(self.args, "resume_with_new_rule", False))
        outcome: list[Any] = [None, None]
        if self.accelerator.is_main_process:  # one process reads all files, and all processes end together
            try:
                outcome[0] = _readable(folder, other)
            except ValueError as error:
                outcome[1] = str(error)
        if self.accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        manifest, refusal = outcome
        if refusal is not None:
            raise ValueError(refusal)
        lost = [*manifest["lost"], *self._restore_control(manifest, other), *self._restore_rank_state(folder, manifest)]
        self._epochs_done, self._step = manifest["epochs"], manifest["micro_step"]
        if manifest["mid_batch"] and manifest["rule"] != str(self.rule):
            lost.append("the rest of a generation batch, decided upon by the old rule, is lost")
        elif manifest["mid_batch"]:
            processes = self.accelerator.num_processes
            if manifest["processes"] != processes:
                expected = f"{manifest['processes']} processes, as when {folder} was written inside a generation batch"
                raise invalid("resume_from_checkpoint", expected, processes)
            path = folder / _BATCH.format(rank=self.accelerator.process_index)
            self._buffered_inputs = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            parts, steps = len(self._buffered_inputs), self.args.steps_per_generation
            if parts != steps:
                expected = f"{parts}, as when {folder} was written inside a generation batch"
                raise invalid("steps_per_generation", expected, steps)
        if lost:
            warnings.warn(f"resumed from {folder}: {'; '.join(lost)}", stacklevel=4)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        # TRL's sampler draws one permutation per epoch from a generator that no checkpoint holds: without this, a run
        # resumed after its first epoch would see the prompts in the order of the first epoch again.
        for _ in range(self._epochs_done):
            next(iter(sampler), None)
        return sampler

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Stop at a loss that is not a number, before the optimizer has seen its gradient."""
        if 0 < self.state.max_steps <= self.state.global_step:
            raise _AtItsEnd
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

    # -- writing ------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        root = Path(self._get_output_dir(trial))
        folder, main = root / f"checkpoint-{self.state.global_step}", self.args.should_save
        try:
            if main:
                begin(folder)
            self.accelerator.wait_for_everyone()
            if self._mid_batch:  # first, since what is uploaded is sealed before the trainer's part ends
                torch.save(self._buffered_inputs, folder / _BATCH.format(rank=self.accelerator.process_index))
            self._save_rank_state(folder)
            self.accelerator.wait_for_everyone()
            # Transformers deletes older checkpoints at the end of its part, when ours is not yet sealed. A limit of
            # None keeps it from that; `save_model` and `_push_from_checkpoint` write the arguments to files and see the
            # true one.
            self._sealed, self._limit_put_off = {}, self.args.save_total_limit
            self.args.save_total_limit = None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = self._limit_put_off
            self.accelerator.wait_for_everyone()
            if main:
                self._seal(folder)
                self._delete_older(root)
            self.accelerator.wait_for_everyone()
        except Exception as error:
            # Writers put a full disk in words of their own, so the free space is named beside them.
            free = shutil.disk_usage(next(place for place in (root, *root.resolve().parents) if place.exists())).free
            shutil.rmtree(folder, ignore_errors=True)
            said = " ".join(str(error).split())[:200]
            raise RunError(f"{folder} could not be written ({free} bytes free): {said}") from error
        finally:
            self._sealed = self._limit_put_off = None

    @property
    def _mid_batch(self) -> bool:
        """Whether the run is inside a generation batch, whose rest a resumed run needs."""
        return bool(self._step % (self.args.steps_per_generation * self.num_iterations))

    def _seal(self, folder: Path) -> None:
        content = {
            **self._control_state(),
            "epochs": int(self.state.epoch or 0),  # an epoch ends with n/n = 1: there the number is whole
            "micro_step": self._step,
            "mid_batch": self._mid_batch,
            "processes": self.accelerator.num_processes,
        }
        self._sealed = seal(folder, content, self._sealed)

    def _delete_older(self, root: Path) -> None:
        try:
            from transformers.trainer_utils import rotate_checkpoints
        except ImportError:  # transformers before 5
            self._rotate_checkpoints(use_mtime=True, output_dir=str(root))
            return
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
        rotate_checkpoints(str(root), limit, best, use_mtime=True)

    @contextmanager
    def _true_limit(self) -> Iterator[None]:
        """Show the true limit of checkpoints in the arguments, inside the saving of one."""
        now = self.args.save_total_limit
        self.args.save_total_limit = now if self._sealed is None else self._limit_put_off
        try:
            yield
        finally:
            self.args.save_total_limit = now

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the model as the trainer does."""
        with self._true_limit():
            super().save_model(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Uploading begins before our part of the saving ends: what is uploaded is sealed first.
        if self.args.should_save and self._sealed is not None:
            self._seal(Path(checkpoint_folder))
        with self._true_limit():
            super()._push_from_checkpoint(checkpoint_folder)


def _interrupted(folder: Path) -> bool:
    """Whether the manifest says that the writing was interrupted."""
    path = folder / MANIFEST
    try:
        return path.is_file() and records.read_json(path).get("complete") is False
    except (ValueError, AttributeError):
        return False


def _readable(folder: Path, other: bool) -> dict[str, Any]:
    """Check a checkpoint and return its manifest, with what resuming from it loses; `other`: one of plain TRL too."""
    if read_manifest(folder) is not None or not (folder / "trainer_state.json").is_file():
        manifest = open_checkpoint(folder, any_release=other)
        lost = [] if manifest["version"] == __version__ else [f"written by {manifest['version']}"]
        return manifest | {"lost": lost + _without(folder)}
    if not other:
        expected = "a checkpoint written under entropy control (resume_with_new_rule=True resumes from others)"
        raise invalid("resume_from_checkpoint", expected, f"{folder}, which plain TRL wrote")
    lost = ["plain TRL wrote it, so the rule begins without memory and the rest of a generation batch is lost"]
    lost += _without(folder)
    epochs = int(records.read_json(folder / "trainer_state.json").get("epoch") or 0)
    plain = {"rule": None, "rule_state": None, "generations": 0, "micro_step": 0, "mid_batch": False}
    return plain | {"epochs": epochs, "lost": lost}


def _without(folder: Path) -> list[str]:
    """What training begins anew because a checkpoint, as of ``save_only_model``, does not hold it, in words."""
    missing = [name for name in ("optimizer", "scheduler.pt", "rng_state") if not list(folder.glob(f"{name}*"))]
    return [f"it has no {name}, which begins anew" for name in missing]
