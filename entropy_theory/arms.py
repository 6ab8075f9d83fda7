"""Arms of an experiment: training runs of the command line, several at a time, each in a process on one thread.

It sits beside the command line, below the demos that compare arms.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropy_theory import records, sampling
from entropy_theory.errors import RunError
from entropy_theory.intervals import Interval, t_interval
from entropy_theory.ranks import PARENT_VARIABLE

LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """A command of the command line whose folder has a result.json when it is done.

    Attributes:
        name: What it is called on the way.
        folder: Its ``--out``.
        words: The command and its options, without ``--out``.
    """

    name: str
    folder: Path
    words: tuple[str, ...]


@dataclass(frozen=True)
class ArmRun:
    """A training run of an arm.

    Attributes:
        arm: Name of the arm.
        seed: Seed of the run.
        folder: Where it is kept.
        options: Options of ``entropy-theory train``, without ``--seed`` and ``--out``.
    """

    arm: str
    seed: int
    folder: Path
    options: tuple[str, ...]

    @property
    def job(self) -> Job:
        """Its command."""
        words = ("train", *self.options, "--seed", str(self.seed))
        return Job(f"{self.arm} (seed {self.seed})", self.folder, words)

    @property
    def steps_done(self) -> int:
        """Steps that are recorded."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


def folder_name(arm: str, seed: int) -> str:
    """Name the folder of a run.

    Example:
        >>> folder_name("Random mask", 0)
        'random-mask-0'
    """
    return f"{arm.lower().replace(' ', '-').replace('_', '-')}-{seed}"


def train_arms(
    runs: Sequence[ArmRun],
    steps: int,
    processes: int,
    progress: Callable[[int, int, str], None],
    others: Sequence[Job] = (),
) -> None:
    """Train what is missing, ``processes`` runs at a time, each in a process of its own on one thread.

    When it ends with an error, runs that have no result yet, not even a step, leave their folders empty, so that a
    corrected command is not refused for what they left; only a run that broke off keeps its log.

    Args:
        runs: All runs.
        steps: Steps of each.
        processes: Runs at a time.
        progress: Called with (steps done, steps in all, the runs at work).
        others: Further commands, for the processes that have no run left.

    Raises:
        RunError: A run failed; the message ends with its last line.
    """
    # One thread a process: two single-threaded runs side by side are faster than one after the other on two threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("PYTHONHASHSEED", "0")  # some tasks draw from sets; all runs are to get the same prompts
    environment[PARENT_VARIABLE] = str(os.getpid())  # when this process is killed, no run writes on
    jobs = [*(run.job for run in runs), *others]
    waiting = [job for job in jobs if not (job.folder / "result.json").exists()]
    running: dict[Job, subprocess.Popen[Any]] = {}
    without_result: list[Job] = []  # started here, and neither finished nor broken off
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                job.folder.mkdir(parents=True, exist_ok=True)
                without_result.append(job)
                command = [sys.executable, "-m", "entropy_theory", *job.words, "--out", str(job.folder)]
                with (job.folder / LOG).open("wb") as log:
                    running[job] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            time.sleep(0.2)
            done = sum(run.steps_done for run in runs)
            progress(done, steps * len(runs), ", ".join(job.name for job in running))
            for job, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                if process.returncode != 2:
                    without_result.remove(job)
                if process.returncode:
                    lines = (job.folder / LOG).read_text(errors="replace").strip().splitlines() or ["no output"]
                    said = lines[-1].removeprefix("entropy-theory: ")
                    raise RunError(f"{job.name}: {said}", status=2 if process.returncode == 2 else 1)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        for job in without_result:
            # A run writes how it samples before its first step.
            records.remove_empty_run(job.folder, LOG, f"trainer/completions/{sampling.FILE}")


def read_runs(runs: Sequence[ArmRun]) -> list[dict[str, Any]]:
    """Read finished runs: ``arm``, ``seed``, ``lines`` (a dict per step), ``final`` and ``steps``."""
    return [
        {"arm": run.arm, "seed": run.seed, "lines": records.read_lines(run.folder / "metrics.jsonl")}
        | records.read_record(run.folder / "result.json", "final", "steps")
        for run in runs
    ]


def summarise_arms(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Interval]]:
    """Average the end of each arm over its seeds.

    Args:
        runs: Dicts with ``arm`` and ``final``, the means of the last steps.

    Returns:
        Per arm and metric the mean with its t-interval.

    Example:
        >>> runs = [{"arm": "GRPO", "final": {"entropy": h}} for h in (0.2, 0.3, 0.25)]
        >>> round(summarise_arms(runs)["GRPO"]["entropy"].mean, 3)
        0.25
    """
    arms = dict.fromkeys(run["arm"] for run in runs)
    return {
        arm: {
            name: t_interval([run["final"][name] for run in runs if run["arm"] == arm])
            for name in next(run["final"] for run in runs if run["arm"] == arm)
        }
        for arm in arms
    }


def interval_data(finals: Mapping[str, Mapping[str, Interval]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Lay `summarise_arms` out as data, as ``result.json`` and the figures read it."""
    return {a: {n: {"mean": i.mean, "half_width": i.half_width} for n, i in m.items()} for a, m in finals.items()}
