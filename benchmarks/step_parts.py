"""Where the time of a training step goes: sampling, forward, backward, optimizer, and what control adds.

    python benchmarks/step_parts.py --out benchmarks/results   # SmolLM2; five minutes on a quiet machine
    python benchmarks/step_parts.py --model demo               # the demo's decoder, seconds

The batch, the settings and the trainers are those of `trainer_overhead.py`. Methods of the trainer are wrapped with a
clock; a method's time is without that of the wrapped ones that it calls, and what no clock saw is "everything else".
Medians over the steps after the first. The columns are separate runs, one after the other, so a part may differ between
them by more than control takes: what control costs is the difference that `trainer_overhead.py` measures in turns.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from trainer_overhead import ModelName, OverheadConfig, be_quiet, build_trainer
from transformers import TrainerCallback

from entropy_theory import records
from entropy_theory.bridge.trl import shared_product
from entropy_theory.program import run_script

SETTINGS = {"plain": ("one-pass", None), "one-pass": ("one-pass", "clip-b"), "extra": ("extra", "clip-b")}
"""Setting and rule of `trainer_overhead.py`, by the name of a column."""
ELSE = "everything else"


@dataclass(frozen=True)
class PartsConfig:
    """What to time.

    Attributes:
        model: demo, vocab or smollm2; see `trainer_overhead.py`.
        settings: plain: plain TRL; one-pass: clip-b with nothing added to TRL's forward; extra: clip-b with a forward.
        steps: Steps that are timed, after one that is not.
        threads: Threads on a CPU.
        device: "cpu" or "cuda".
        out: Folder for step_parts_MODEL_DEVICE.json; none if omitted.
    """

    model: ModelName = "smollm2"
    settings: tuple[Literal["plain", "one-pass", "extra"], ...] = ("plain", "one-pass", "extra")
    steps: int = 4
    threads: int = 2
    device: Literal["cpu", "cuda"] = "cpu"
    out: Path | None = None


@dataclass
class Clocks:
    """Elapsed time by part, each without the parts inside it."""

    device: str
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _inside: list[float] = field(default_factory=list)

    def now(self) -> float:
        """The time when the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def put_on(self, owner: Any, method: str, part: str) -> None:
        """Wrap a method of an object or a class."""
        original: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(original)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            self._inside.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                elapsed = self.now() - start
                self.spent[part] += elapsed - self._inside.pop()
                if self._inside:
                    self._inside[-1] += elapsed

        setattr(owner, method, clocked)


class PerStep(TrainerCallback):
    """Notes what each optimizer step took, in parts; it spans the batch that the step samples."""

    def __init__(self, trainer: Any, clocks: Clocks) -> None:
        self.trainer, self.clocks, self.steps = trainer, clocks, list[dict[str, float]]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer exists from here on."""
        self.clocks.put_on(self.trainer.optimizer, "step", "optimizer")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clocks."""
        self.clocks.spent.clear()
        self._start = self.clocks.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the clocks."""
        total, spent = self.clocks.now() - self._start, dict(self.clocks.spent)
        self.steps.append({**spent, ELSE: total - sum(spent.values()), "total": total})


def parts_of(config: PartsConfig, name: str, folder: str) -> dict[str, float]:
    """Seconds of a step by part, medians over the steps."""
    setting, rule = SETTINGS[name]
    sizes = OverheadConfig(threads=config.threads, device=config.device)
    trainer: Any = build_trainer(sizes, config.model, setting, rule, folder, config.steps + 1)
    clocks = Clocks(config.device)
    clocks.put_on(trainer, "_generate_single_turn", "sampling")
    clocks.put_on(trainer, "_calculate_rewards", "reward functions")
    clocks.put_on(trainer, "_compute_loss", "forward and loss")
    clocks.put_on(trainer.accelerator, "backward", "backward")
    seen = shared_product.SharedProduct
    originals = {method: getattr(seen, method) for method in ("_see", "statistics")}
    if rule is not None:
        clocks.put_on(trainer._scorer, "score", "control: separate forward")
        clocks.put_on(trainer._generation, "decide", "control: rule and metrics")
        for method in originals:
            clocks.put_on(seen, method, "control: statistics of TRL's tiles")
    per_step = PerStep(trainer, clocks)
    trainer.add_callback(per_step)
    try:
        trainer.train()
    finally:
        for method, original in originals.items():
            setattr(seen, method, original)
    measured = per_step.steps[1:]
    return {part: median(step.get(part, 0.0) for step in measured) for part in measured[0]}


def table_of(config: PartsConfig, measured: dict[str, dict[str, float]]) -> Table:
    """The parts as a table: seconds, and shares of the step."""
    table = Table(title=f"{config.model}: where a step's time goes", box=SIMPLE)
    table.add_column("part")
    for name in measured:
        table.add_column(name, justify="right")
    for part in [p for p in dict.fromkeys(p for parts in measured.values() for p in parts) if p != "total"] + ["total"]:
        cells = [f"{p[part]:.3f} s {p[part] / p['total']:6.1%}" if part in p else "" for p in measured.values()]
        table.add_row(part, *cells)
    return table


def main(config: PartsConfig) -> None:
    """Time, print, and record if asked."""
    be_quiet()
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        measured: dict[str, dict[str, float]] = {name: parts_of(config, name, folder) for name in config.settings}
    Console().print(table_of(config, measured))
    if config.out is not None:
        content = {"configuration": config, "environment": records.environment(), "seconds": measured}
        records.write_json(config.out / f"step_parts_{config.model}_{config.device}.json", content)


if __name__ == "__main__":
    run_script(main, PartsConfig)
