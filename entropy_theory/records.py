"""What every run leaves behind: its configuration, its environment and its results, written whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import platform
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from entropy_theory.errors import WriteError, invalid, one_line, reading

LOCK = ".lock"
PROMPTS = "prompts.json"  # a digest of what a run trains on
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

    Raises:
        WriteError: The system could not write it; what was there before is still there.

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
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except Exception as error:
        # safetensors reports a full disk as an error of its own kind, pyarrow and pandas as OSError
        if isinstance(error, WriteError) or not (isinstance(error, OSError) or "I/O error" in str(error)):
            raise
        raise WriteError(
            f"{path} could not be written: {one_line(getattr(error, 'strerror', None) or error)}"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold a run's folder against other processes; the lock ends with the process, however it ends.

    Args:
        folder: The run's folder.
        patience: Seconds to wait for another process to let go.

    Raises:
        ValueError: Another process still works in the folder, or the lock is not a plain file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, exclusive(Path(folder)):
        ...     pass
    """
    import fcntl

    deadline = time.monotonic() + patience
    while True:
        try:
            lock = _open_lock(folder)
        except FileNotFoundError:  # the process before removed its folder between the two steps of opening
            if time.monotonic() > deadline:
                raise
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), (folder / LOCK).lstat()):
                    break  # else the process before removed its folder while this one waited
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise invalid("out", "a folder in which no other run is at work", folder) from None
            time.sleep(0.1)
        os.close(lock)
    try:
        yield
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    """Open the lock of a folder without following a link or changing what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.open(folder / LOCK, flags, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        raise invalid("out", f"a folder whose {LOCK} is a plain file", folder) from None
    if not stat.S_ISREG(os.fstat(lock).st_mode):
        os.close(lock)
        raise invalid("out", f"a folder whose {LOCK} is a plain file", folder)
    return lock


@contextmanager
def run_folder(folder: Path, config: object, *, ignore: tuple[str, ...] = ("out",)) -> Iterator[bool]:
    """Hold a run's folder and open it as `open_run` does; gives whether the run is finished.

    A run that ends with an error before it has left anything takes its folder away again, so that the corrected command
    finds a new one.

    Args:
        folder: The run's folder.
        config: Its configuration.
        ignore: Names in the configuration that do not change the result.

    Raises:
        ValueError: Another process works in the folder, or it holds a run with another configuration.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     try:
        ...         with run_folder(Path(name) / "runs" / "a", {"steps": 5}) as finished:
        ...             raise ValueError("model: no such folder")
        ...     except ValueError:
        ...         print(list(Path(name).iterdir()))
        []
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with exclusive(folder):
            try:
                yield open_run(folder, config, ignore=ignore)
            except BaseException:
                remove_empty_run(folder)
                raise
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def remove_empty_run(folder: Path, *others: str) -> None:
    """Remove the records of a run that left nothing but them and empty folders; whatever else is there keeps them all.

    Args:
        folder: The run's folder.
        *others: Further files that are no results, such as a log.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     for file in ("log.txt", "config.json"):
        ...         _ = Path(name, file).write_text("{}")
        ...     remove_empty_run(Path(name))
        ...     print(len(list(Path(name).iterdir())))
        ...     remove_empty_run(Path(name), "log.txt")
        ...     print(len(list(Path(name).iterdir())))
        2
        0
    """
    entries = sorted(folder.rglob("*"), reverse=True)  # what lies in a folder before the folder
    files = {path for path in entries if path.is_symlink() or not path.is_dir()}
    if files <= {folder / name for name in (LOCK, "config.json", "environment.json", PROMPTS, *others)}:
        with suppress(OSError):
            for path in entries:
                path.unlink() if path in files else path.rmdir()


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; NaN and infinities are refused, because JSON has none."""
    with written_whole(path) as temporary:
        text = json.dumps(to_data(value), indent=1, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not valid JSON; the message names it.
    """
    with reading(str(path), "a JSON document", path.name):
        return json.loads(path.read_text(encoding="utf-8"))


def read_record(path: Path, *names: str) -> dict[str, Any]:
    """Read a JSON object that must have some names.

    Raises:
        ValueError: The file is not valid JSON, not an object, or lacks a name; the message names the file.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not record.keys() >= set(names):
        raise invalid(str(path), f"a JSON object with {', '.join(names)}", f"{one_line(repr(record), 80)}")
    return record


def append_line(path: Path, value: object) -> None:
    """Append one JSON line and flush it to the system, so that a killed run keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(to_data(value), allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line that was cut short by a kill is left out.

    Raises:
        ValueError: A line before the last is not a JSON object; the message gives its number.
    """
    if not path.exists():
        return []
    with reading(str(path), "text in UTF-8", path.name):
        lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise invalid(f"{path}, line {number}", "a JSON object", one_line(error)) from None
        if not isinstance(record, dict):
            raise invalid(f"{path}, line {number}", "a JSON object", one_line(repr(record), 80))
        records.append(record)
    return records


def open_run(folder: Path, config: object, *, ignore: tuple[str, ...] = ("out",)) -> bool:
    """Prepare a run's folder and tell whether the run is finished.

    A new folder gets ``config.json`` and ``environment.json``. A folder of the same configuration is opened again. A
    folder of another configuration is refused: results are never mixed.

    Args:
        folder: The run's folder.
        config: Its configuration.
        ignore: Names in the configuration that do not change the result.

    Returns:
        True when ``result.json`` is there: nothing is left to do.

    Raises:
        ValueError: The folder holds a run with another configuration, or one that has lost it.
    """
    digest = configuration_hash(config, ignore=ignore)
    path = folder / "config.json"
    if path.exists():
        recorded = read_record(path, "hash", "configuration")
        if recorded["hash"] != digest:
            mine, theirs = to_data(config), recorded["configuration"]
            theirs = theirs if isinstance(theirs, dict) else {}
            changed = [k for k in sorted({*mine, *theirs}) if k not in ignore and mine.get(k) != theirs.get(k)]
            raise invalid(
                "out",
                "a new folder, or one of a run with this configuration",
                f"{folder}, which differs in {', '.join(changed) or 'its version'}; delete it or choose another",
            )
        return (folder / "result.json").exists()
    if (folder / "environment.json").exists() and {p.name for p in folder.iterdir()} - {LOCK, "environment.json"}:
        raise invalid("out", "a new folder, or one of a run with this configuration", f"{folder} without config.json")
    write_json(folder / "environment.json", environment())
    write_json(path, {"hash": digest, "configuration": to_data(config)})
    return False


def array_digest(arrays: Mapping[str, Any], content: object = None) -> str:
    """Hash arrays with their names, types and shapes, and what else belongs to them: SHA-256 in hexadecimal.

    Example:
        >>> import numpy as np
        >>> x = np.arange(3)
        >>> array_digest({"x": x}) == array_digest({"x": x.copy()}) != array_digest({"x": x}, {"step": 1})
        True
    """
    import numpy as np

    digest = hashlib.sha256(json.dumps(to_data(content), sort_keys=True, allow_nan=False).encode())
    for name in sorted(arrays):
        values = arrays[name]
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, Any], content: object = None) -> None:
    """Write arrays as safetensors, whole or not at all, with a digest of them and of what else belongs to them.

    Args:
        path: The file.
        arrays: NumPy arrays by name.
        content: Data that JSON can hold.
    """
    from safetensors.numpy import save_file

    described, digest = json.dumps(to_data(content), allow_nan=False), array_digest(arrays, content)
    with written_whole(path) as temporary:
        save_file(dict(arrays), temporary, metadata={"content": described, "sha256": digest})


def load_arrays(path: Path, name: str = "out") -> dict[str, Any]:
    """Read the arrays of `save_arrays`.

    Args:
        path: The file.
        name: The argument through which its folder came.

    Raises:
        ValueError: The file is broken, or is not what was written.
    """
    return read_arrays(path, name)[0]


def read_arrays(path: Path, name: str = "out") -> tuple[dict[str, Any], Any]:
    """Read the arrays of `save_arrays` and what was written with them.

    Raises:
        ValueError: The file is broken, or is not what was written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.safetensors")
        ...     save_arrays(path, {"x": np.arange(3)}, {"step": 2})
        ...     arrays, content = read_arrays(path)
        >>> arrays["x"].tolist(), content
        ([0, 1, 2], {'step': 2})
    """
    from safetensors import safe_open

    with reading(name, "a file as this program wrote it", path), safe_open(path, "np") as file:
        arrays, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
        content = json.loads(metadata["content"])
        if array_digest(arrays, content) != metadata["sha256"]:
            raise invalid(name, "a file as this program wrote it", f"{path}, whose digest is another")
        return arrays, content
