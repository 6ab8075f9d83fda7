"""What a user waits for: commands from the shell, started anew each time, beside their floors.

    python benchmarks/waiting_times.py
    python benchmarks/waiting_times.py --before ../another-checkout    # the same commands of another version, in turns

Floors: Python alone, and the imports that a command cannot do without. Medians of wall-clock seconds; a command that
ends with another status than 0 ends the benchmark. `lens`, `inspect` and `ledger` read a run of two updates, which each
version makes for itself first. The versions change places from turn to turn, so that neither always runs second.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from entropy_theory import records
from entropy_theory.program import run_script

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class WaitingConfig:
    """Time the commands.

    Attributes:
        rounds: Turns of all commands.
        before: Another checkout of the package, timed beside this one; it has to know the options of the commands.
        only: Names of the commands to time; default: all of them.
        out: Folder of waiting_times.json; default: nothing is written.
    """

    rounds: int = 5
    before: Path | None = None
    only: tuple[str, ...] = ()
    out: Path | None = None


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """What is timed, as arguments of Python; floors first."""
    run, module = str(folder / "run"), ("-m", "entropy_theory")
    inspect = (*module, "inspect", run, "--model", f"{run}/model")
    return {
        "python": ("-c", "pass"),
        "import numpy, scipy, sympy": ("-c", "import numpy, scipy.stats, sympy"),
        "import torch": ("-c", "import torch"),
        "import torch, transformers": ("-c", "import torch; from transformers import AutoModelForCausalLM"),
        "import trl's trainer": ("-c", "import torch; from trl import GRPOTrainer"),
        "import entropy_theory": ("-c", "import entropy_theory"),
        "import entropy_theory.vocab": ("-c", "from entropy_theory.vocab import token_statistics"),
        "--help": (*module, "--help"),
        "train --help": (*module, "train", "--help"),
        "verify --quick": (*module, "verify", "--quick"),
        "simulate toy, 100 steps": (*module, "simulate", "toy", "--steps", "100", "--out", f"{folder}/toy{{turn}}"),
        "lens": (*module, "lens", f"{run}/batches/batch-000001.safetensors"),
        "inspect": (*inspect, "--out", f"{folder}/page.html"),
        "ledger": (*module, "ledger", run),
    }


def prepare(folder: Path, root: Path) -> None:
    """Make the run that lens, inspect and ledger read, with the package that will read it."""
    words = ["train", "--steps", "2", "--prompts-per-step", "4", "--generations", "8", "--ledger", "--log-completions"]
    seconds(("-m", "entropy_theory", *words, "--save-batches", "1", "--out", str(folder / "run")), root)


def seconds(arguments: tuple[str, ...], root: Path) -> float:
    """Run Python with the package of a checkout; wall-clock seconds."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "COLUMNS": "100"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - start
    if done.returncode:
        said = " ".join(done.stderr.translate(dict.fromkeys(map(ord, "─│╭╮╰╯"))).split())  # in one line, no frame
        raise SystemExit(f"{root}: {' '.join(arguments)} ended with {done.returncode}: {said[-300:]}")
    return elapsed


def main(config: WaitingConfig) -> None:
    """Time in turns, print and record."""
    roots = {"now": HERE} | ({} if config.before is None else {"before": config.before.resolve()})
    with tempfile.TemporaryDirectory() as temporary:
        chosen = {}
        for version, root in roots.items():
            folder = Path(temporary) / version
            folder.mkdir()
            chosen[version] = {k: v for k, v in commands(folder).items() if not config.only or k in config.only}
            if any(str(folder / "run") in " ".join(arguments) for arguments in chosen[version].values()):
                prepare(folder, root)
        times: dict[str, dict[str, list[float]]] = {name: {v: [] for v in roots} for name in chosen["now"]}
        for turn in range(-1, config.rounds):  # the first turn fills the caches of the file system and of compiled code
            for name, measured in times.items():
                for version in list(roots)[:: -1 if turn % 2 else 1]:
                    words = tuple(word.replace("{turn}", str(turn)) for word in chosen[version][name])
                    elapsed = seconds(words, roots[version])
                    if turn >= 0:
                        measured[version].append(elapsed)
    medians = {name: {v: statistics.median(values) for v, values in row.items()} for name, row in times.items()}
    print(f"{'seconds, medians of ' + str(config.rounds):32}" + "".join(f"{version:>10}" for version in roots))
    for name, row in medians.items():
        print(f"{name:32}" + "".join(f"{value:10.2f}" for value in row.values()))
    if config.out is not None:
        content = {"environment": records.environment(), "rounds": config.rounds, "seconds": medians}
        records.write_json(config.out / "waiting_times.json", content)


if __name__ == "__main__":
    run_script(main, WaitingConfig)
