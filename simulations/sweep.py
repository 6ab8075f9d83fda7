"""Sweeps: independent tasks, each a frozen dataclass whose result is a file of its own.

A script lists its tasks and says how one is done. `run` does those that have no file yet, in one process, in several
(`--processes`), or a share of them as one task of any cluster scheduler (`--task i/n`); once all files are there it
merges them, in the order of the tasks. Every task computes on one thread and draws from its own seeds, so the merged
results are the same whichever way they came about. A sweep that was killed resumes with the tasks that are missing.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from entropy_theory import records
from entropy_theory.dynamics.bank import threads_for
from entropy_theory.errors import invalid

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is carried out; nothing here but `quick` changes a result.

    Attributes:
        quick: The smallest setting that still shows the effect, in seconds; its record stays out of the results.
        processes: Tasks done at a time, each on one thread.
        task: As i/n with i from 0: do the i-th of n shares of the tasks and merge nothing; a run without it merges.
        runs: Folder of the tasks' files; a task with a file is not repeated.
        out: The record; default: simulations/results/NAME.json, or NAME-quick.json in `runs`.
    """

    quick: bool = False
    processes: int = 1
    task: str | None = None
    runs: Path = Path("runs/sweeps")
    out: Path | None = None


OPTIONS = tuple(f.name for f in fields(SweepOptions))
C = TypeVar("C", bound=SweepOptions)


def with_quick_settings(config: C, quick: Mapping[str, Any]) -> C:
    """Put the quick setting in place of the defaults, if it is asked for; what the user gave stays."""
    if not config.quick:
        return config
    defaults = {f.name: f.default for f in fields(config)}
    return replace(config, **{k: v for k, v in quick.items() if getattr(config, k) == defaults[k]})


def run(
    name: str,
    config: SweepOptions,
    tasks: Sequence[Any],
    work: Callable[[Any], dict[str, Any]],
    summarise: Callable[[list[dict[str, Any]]], dict[str, Any]],
    left_out: Mapping[type, tuple[str, ...]] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """Do the tasks that are missing, merge all of them and write the record.

    Args:
        name: The script's name.
        config: The configuration; it goes into the record without the options of this module.
        tasks: Frozen dataclasses. The class names the kind of task: the same task of two scripts is done once.
        work: Does one task and returns what JSON can hold; importable, so that a process can be handed it.
        summarise: Makes the summary from ``[{"task": ..., "result": ...}, ...]``.
        left_out: Parts of a kind of task's results that stay in the files and out of the record.

    Returns:
        The record: configuration, environments, summary and results; where the environments differ, each result has
        the index of its own. None for a share of the tasks.

    Raises:
        ValueError: The options are wrong, or tasks failed (after the others were done).
    """
    if config.processes < 1:
        raise invalid("processes", "an integer >= 1", config.processes)
    mine = share(tasks, config.task)
    files = {task: file_of(task, config) for task in tasks}
    _do_missing({task: files[task] for task in mine if not files[task].exists()}, work, config.processes, len(mine))
    if config.task is not None:
        print(f"share {config.task} done: {len(mine)} of {len(tasks)} tasks; files in {config.runs}")
        return None
    parts = [records.read_json(files[task]) for task in tasks]
    results = [
        {"task": part["task"], "result": {k: v for k, v in part["result"].items() if k not in left_out.get(kind, ())}}
        for part, kind in zip(parts, map(type, tasks), strict=True)
    ]
    environments = list({json.dumps(p["environment"]): p["environment"] for p in parts}.values())
    if len(environments) > 1:
        for entry, part in zip(results, parts, strict=True):
            entry["environment"] = environments.index(part["environment"])
    record = {
        "configuration": {k: v for k, v in records.to_data(config).items() if k == "quick" or k not in OPTIONS},
        "environments": environments,
        "summary": records.to_data(summarise(results)),
        "results": results,
    }
    out = config.out or (config.runs / f"{name}-quick.json" if config.quick else RESULTS / f"{name}.json")
    _write(out, record)
    print(f"written: {out}")
    return record


def restore(name: str, config: SweepOptions, tasks: Sequence[Any]) -> None:
    """Write the files of those tasks that a record in the repository holds whole, so that they are not run again."""
    record = read(name)
    environments = record["environments"]
    if len(environments) > 1 and any("environment" not in entry for entry in record["results"]):
        raise invalid(f"{name}.json", "the environment of each result", f"{len(environments)} of all results")
    held = {json.dumps(entry["task"]): entry for entry in record["results"]}
    for task in tasks:
        entry, path = held.get(json.dumps(records.to_data(task))), file_of(task, config)
        if entry is not None and not path.exists():
            records.write_json(path, entry | {"environment": environments[entry.get("environment", 0)]})


def file_of(task: Any, config: SweepOptions) -> Path:
    """Return the file that holds a task's result once it is done."""
    return config.runs / f"{_words(type(task).__name__)}-{_digest(task)}.json"


def share(tasks: Sequence[Any], which: str | None) -> list[Any]:
    """Choose the tasks of a share ``i/n``, every n-th from the i-th on; all of them for None."""
    if which is None:
        return list(tasks)
    measured = re.fullmatch(r"(\d+)/(\d+)", which)
    if not measured or not int(measured[1]) < int(measured[2]):
        raise invalid("task", "i/n with 0 <= i < n, such as 0/4", repr(which))
    return list(tasks[int(measured[1]) :: int(measured[2])])


def read(name: str) -> dict[str, Any]:
    """Read a recorded sweep."""
    measured: dict[str, Any] = records.read_json(RESULTS / f"{name}.json")
    return measured


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds, half-width of the 95 % t-interval (None for one seed) and the seeds' values, as data."""
    from entropy_theory.intervals import t_interval

    measured = t_interval([float(value) for value in values])
    return {"mean": measured.mean, "half_width": measured.half_width, "values": list(measured.values)}


def shown(measured: Mapping[str, Any], digits: int = 3) -> str:
    """Print an interval of `interval`."""
    width = measured["half_width"]
    return f"{measured['mean']:.{digits}f}" + ("" if width is None else f" ± {width:.{digits}f}")


def rounded(values: Any, digits: int = 5) -> Any:
    """Round numbers to significant digits, in lists of any depth: a record need not hold more than a figure shows."""
    if isinstance(values, Mapping):
        return {k: rounded(v, digits) for k, v in values.items()}
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [rounded(v, digits) for v in values]
    return float(f"{values:.{digits}g}") if isinstance(values, float) else values


def _do_missing(todo: Mapping[Any, Path], work: Callable[[Any], dict[str, Any]], processes: int, total: int) -> None:
    start, done = time.monotonic(), total - len(todo)
    failed: dict[Any, BaseException] = {}
    varied = {kind: _varied([task for task in todo if type(task) is kind]) for kind in map(type, todo)}

    def report(task: Any, error: BaseException | None) -> None:
        nonlocal done
        done += 1
        words = ", ".join([type(task).__name__, *(f"{name} {getattr(task, name)}" for name in varied[type(task)])])
        if error is not None:
            failed[task] = error
            traceback.print_exception(error)
        print(f"{done}/{total} [{time.monotonic() - start:.0f} s] {'FAILED ' if error else ''}{words}", flush=True)

    if processes == 1:
        for task, path in todo.items():
            try:
                _do(work, task, path)
                report(task, None)
            except Exception as error:
                report(task, error)
    elif todo:
        context = multiprocessing.get_context("spawn")  # forked workers would inherit the locks of torch's threads
        with (
            _one_thread(),
            ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool,
        ):
            futures = {pool.submit(_do, work, task, path): task for task, path in todo.items()}
            for future in as_completed(futures):
                report(futures[future], future.exception())
    if failed:
        first = next(iter(failed.values()))
        raise invalid("tasks", "tasks that end well", f"{len(failed)} that failed, the first with {first!r}") from first


def _varied(tasks: Sequence[Any]) -> list[str]:
    """Name the fields that tell tasks of one kind apart."""
    return [f.name for f in fields(tasks[0]) if len({getattr(task, f.name) for task in tasks}) > 1]


def _do(work: Callable[[Any], dict[str, Any]], task: Any, path: Path) -> None:
    if path.exists():  # another sweep that shares the task was first
        return
    with threads_for(1):
        result = work(task)
    records.write_json(path, {"task": task, "environment": records.environment() | {"threads": 1}, "result": result})


def _digest(task: Any) -> str:
    if not dataclasses.is_dataclass(task):
        raise invalid("tasks", "frozen dataclasses", repr(task))
    return records.configuration_hash(task)


def _words(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let child processes start with one thread each."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _end_with_parent() -> None:
    """Let a worker end when the sweep is killed, instead of waiting for tasks forever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """Write JSON with a line per result, which is short and can still be compared line by line."""

    def dumped(value: Any) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    *head, (last, results) = record.items()
    lines = [f" {dumped(k)}: {json.dumps(v, indent=1, allow_nan=False, ensure_ascii=False)}" for k, v in head]
    body = ",\n".join(f"  {dumped(result)}" for result in results)
    with records.written_whole(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + f",\n {dumped(last)}: [\n{body}\n ]\n}}\n")
