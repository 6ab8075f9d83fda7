"""The demo: verify the theory, warm up a small language model, train it under several rules, compare.

It sits beside the command line, above every room: it calls theory, bridge and report, and none of them calls it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_theory import records
from entropy_theory.errors import invalid

if TYPE_CHECKING:
    from rich.console import Console

    Bar = Callable[[Console], AbstractContextManager[Callable[[int, int, str], None]]]

# The official thresholds (2.5; 8.5 with a cap of 1e-4 of the tokens) drop almost nothing in batches of 2,000 tokens.
ARMS = {
    "GRPO": "none",
    "Clip_B": "clip-b(mu=1)",
    "Clip_V": "clip-v(mu=2, max_fraction=None)",
}


@dataclass(frozen=True)
class DemoConfig:
    """Verify the theorems, then watch entropy collapse in a small language model, and be prevented.

    A decoder of 85,000 parameters is trained from scratch on the sum task and then by GRPO in several arms: no control,
    Clip_B, Clip_V. A table and a figure end up in the folder. What it shows is entropy and the diversity of right
    answers, not accuracy.

    Attributes:
        steps: GRPO steps of each arm.
        seeds: Seeds of GRPO's sampling; the warmed-up decoder is the same for all.
        processes: Arms trained at the same time, each on one thread.
        out: Folder for the results. A finished part is not repeated.
    """

    steps: int = 400
    seeds: tuple[int, ...] = (0,)
    processes: int = 2
    out: Path = Path("runs/demo")

    def __post_init__(self) -> None:
        """Refuse an empty demo."""
        if self.steps < 1:
            raise invalid("steps", "an integer >= 1", self.steps)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise invalid("seeds", "one or more different integers", self.seeds)
        if self.processes < 1:
            raise invalid("processes", "an integer >= 1", self.processes)


def run_demo(config: DemoConfig, console: Console, bar: Bar) -> int:
    """Run the demo and print as it goes.

    Args:
        config: Size and folder.
        console: Where to print.
        bar: Opens a progress bar.

    Returns:
        0, or 1 if a check of the theory failed.
    """
    from entropy_theory.report import figures, terminal
    from entropy_theory.testbed import decoder
    from entropy_theory.theory.verification import verify

    start = time.monotonic()
    console.rule("1. The theory, checked")
    with bar(console) as progress:
        report = verify(budget="quick", progress=progress)
    console.print(terminal.verification_table(report.to_dict()))
    report.save(config.out / "verification.json")
    if not report.passed:
        return 1

    console.rule("2. A language model, warmed up on the sum task")
    with bar(console) as progress:
        checkpoint = decoder.cached_checkpoint(progress=progress)
    console.print(f"decoder in {checkpoint}")

    console.rule("3. GRPO, arm by arm")
    with bar(console) as progress:
        train_arms(config, progress)
    runs = [
        {"arm": arm, "seed": seed, "folder": folder.as_posix(), "lines": records.read_lines(folder / "metrics.jsonl")}
        | records.read_json(folder / "result.json")
        for arm, seed, folder in _runs(config)
    ]
    figures.save(figures.training_curves(runs), config.out / "training.png")
    table = [{k: v for k, v in run.items() if k != "lines"} for run in runs]
    seconds = round(time.monotonic() - start, 1)
    records.write_json(config.out / "result.json", {"arms": ARMS, "runs": table, "seconds": seconds})
    console.print(terminal.arms_table(table, ARMS))
    console.print(
        "Entropy is in nats, mean over the sampled tokens. 'distinct right' counts different right answers among the "
        "completions of one prompt. The thresholds are below the official ones (2.5; 8.5 with a cap), which drop "
        "almost nothing at this scale."
    )
    console.print(f"figure: {config.out / 'training.png'}; everything else in {config.out}")
    return 0


def _runs(config: DemoConfig) -> list[tuple[str, int, Path]]:
    """List the training runs: arm, seed, folder."""
    return [(arm, seed, config.out / "arms" / f"{arm}-{seed}") for seed in config.seeds for arm in ARMS]


def train_arms(config: DemoConfig, progress: Callable[[int, int, str], None]) -> None:
    """Train all arms, ``processes`` at a time, each in a process of its own on one thread.

    Raises:
        ValueError: A run failed; the message ends with its last line.
    """
    # One thread a process: two single-threaded runs side by side are faster than one after the other on two threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["ENTROPY_THEORY_PARENT"] = str(os.getpid())  # a killed demo leaves no run behind that writes on
    waiting = _runs(config)
    total = config.steps * len(waiting)
    running: dict[tuple[str, int, Path], subprocess.Popen[Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < config.processes:
                arm, seed, folder = run = waiting.pop(0)
                folder.mkdir(parents=True, exist_ok=True)
                command = [sys.executable, "-m", "entropy_theory", "train", "--rule", ARMS[arm], "--out", str(folder)]
                command += ["--steps", str(config.steps), "--seed", str(seed)]
                with (folder / "log.txt").open("w") as log:
                    running[run] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            time.sleep(0.5)
            done = sum(_steps_done(folder) for _, _, folder in _runs(config))
            progress(done, total, "training " + ", ".join(f"{arm} (seed {seed})" for arm, seed, _ in running))
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode:
                    lines = (run[2] / "log.txt").read_text().strip().splitlines() or ["no output"]
                    raise invalid(f"arm {run[0]}, seed {run[1]}", "a run that ends well", lines[-1])
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
