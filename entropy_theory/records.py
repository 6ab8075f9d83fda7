"""What every run leaves behind: its configuration, its environment and its results, written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from entropy_theory.errors import invalid

PACKAGES = ("numpy", "scipy", "sympy", "torch", "numba", "triton", "transformers", "trl", "accelerate", "datasets")


def to_data(value: object) -> Any:
    """Turn a dataclass, path or container into what JSON can hold.

    Example:
        >>> from pathlib import Path
        >>> to_data({"out": Path("runs/demo"), "seeds": (0, 1)})
        {'out': 'runs/demo', 'seeds': [0, 1]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_data(v) for v in value]
    if isinstance(value, Path):
        return value.as_posix()
    return value


def configuration_hash(config: object, *, ignore: tuple[str, ...] = ()) -> str:
    """Hash a configuration and this package's version, so that a result is never taken for that of another run.

    Args:
        config: A dataclass or mapping.
        ignore: Names that do not change the result, such as the output folder.

    Returns:
        The first 12 hexadecimal digits of SHA-256 over the sorted JSON.

    Example:
        >>> configuration_hash({"seed": 0, "out": "a"}, ignore=("out",)) == configuration_hash({"seed": 0})
        True
    """
    from entropy_theory import __version__

    data = {"version": __version__, **{k: v for k, v in to_data(config).items() if k not in ignore}}
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def environment() -> dict[str, Any]:
    """Describe what a run ran on: commit, versions, processor, threads, device."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    record: dict[str, Any] = {
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
    if "torch" in versions:
        import torch

        record["threads"] = torch.get_num_threads()
        record["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return record


def _commit() -> str | None:
    """Return the checkout's commit, marked when there are uncommitted changes; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        top = Path(git("rev-parse", "--show-toplevel").strip())
        if not (top / "entropy_theory" / Path(__file__).name).exists():
            return None  # installed inside some other project's checkout
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and put it in place when the block ends well.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "a.txt"
        ...     with written_whole(target) as temporary:
        ...         _ = temporary.write_text("done")
        ...     target.read_text()
        'done'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold a run's folder against other processes; the lock ends with the process, however it ends.

    Args:
        folder: The run's folder.
        patience: Seconds to wait for another process to let go.

    Raises:
        ValueError: Another process still works in the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, exclusive(Path(folder)):
        ...     pass
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder / ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise invalid("out", "a folder in which no other run is at work", folder) from None
                time.sleep(0.1)
        yield


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; NaN and infinities are refused, because JSON has none."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(to_data(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not valid JSON; the message names it.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise invalid(str(path), "a JSON document", str(error)) from None


def append_line(path: Path, value: object) -> None:
    """Append one JSON line and flush it to the system, so that a killed run keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(to_data(value), allow_nan=False) + "\n")


def write_lines(path: Path, lines: Sequence[object]) -> None:
    """Write JSON lines atomically, in place of what was there."""
    with written_whole(path) as temporary:
        temporary.write_text("".join(json.dumps(to_data(line), allow_nan=False) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line that was cut short by a kill is left out.

    Raises:
        ValueError: A line before the last is not valid JSON; the message gives its number.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise invalid(f"{path}, line {number}", "a JSON object", str(error)) from None
    return records


def open_run(folder: Path, config: object, *, ignore: tuple[str, ...] = ("out",)) -> bool:
    """Prepare a run's folder and tell whether the run is finished.

    A new folder gets ``config.json`` and ``environment.json``. A folder of the same configuration is taken up again. A
    folder of another configuration is refused: results are never mixed.

    Args:
        folder: The run's folder.
        config: Its configuration.
        ignore: Names in the configuration that do not change the result.

    Returns:
        True when ``result.json`` is there: nothing is left to do.

    Raises:
        ValueError: The folder holds a run with another configuration.
    """
    digest = configuration_hash(config, ignore=ignore)
    path = folder / "config.json"
    if path.exists():
        found = read_json(path)
        if found.get("hash") != digest:
            mine = to_data(config)
            theirs = found.get("configuration", {})
            changed = [k for k in sorted({*mine, *theirs}) if k not in ignore and mine.get(k) != theirs.get(k)]
            raise invalid(
                "out",
                "a new folder, or one of a run with this configuration",
                f"{folder}, which differs in {', '.join(changed) or 'its version'}; delete it or choose another",
            )
        return (folder / "result.json").exists()
    write_json(folder / "environment.json", environment())
    write_json(path, {"hash": digest, "configuration": to_data(config)})
    return False
