"""Checkpoints that are whole or absent: staged beside their place, listed in a manifest, renamed at the end.

The trainer's own checkpoints appear file by file, and a missing random-number, optimizer or scheduler file is passed
over in silence when training goes on: the run then ends with other numbers. Here a checkpoint without its manifest, or
with a file missing or cut short, is refused by name.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropy_theory import records
from entropy_theory.errors import invalid

MANIFEST = "entropy_control.json"
STAGING = ".staging"
FORMAT = 1
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
    records.write_json(folder / MANIFEST, {"format": FORMAT, **content, "files": files})


def put_in_place(staged: Path, target: Path) -> None:
    """Rename a sealed checkpoint to its name; one of the same step that is there already is replaced."""
    if target.exists():
        shutil.rmtree(target)
    staged.rename(target)
    shutil.rmtree(staged.parent, ignore_errors=True)


def open_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest and check that every file is there in full.

    Args:
        folder: The checkpoint.

    Returns:
        The manifest.

    Raises:
        ValueError: There is no manifest, it is of another format, or a file is missing or has another length.
    """
    if not (folder / MANIFEST).is_file():
        raise invalid("resume_from_checkpoint", f"a whole checkpoint, with {MANIFEST}", folder)
    manifest = records.read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise invalid(
            "resume_from_checkpoint", f"a checkpoint of format {FORMAT}", f"{folder}: {manifest.get('format')}"
        )
    for name, size in manifest["files"].items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            received = "no such file" if found is None else f"{found} bytes"
            raise invalid("resume_from_checkpoint", f"{folder / name} with {size} bytes", received)
    return dict(manifest)


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
    found = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))]
    return max(found)[1] if found else None


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
