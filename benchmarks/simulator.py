"""What a recorded step of the simulator costs: the torch path before, the compiled loops after, and the floors.

The floor is one plain read of the logits (``amax``); that of several threads is what they make of exponentials alone,
since the cores of a shared machine may be halves of one. The unit is one exponential per logit in float64 by
``torch.exp`` in the cache; the loops have a faster one of their own, so a step may take less than a unit. Every peer
runs in each round, one after the other, so that a slow moment of the machine hits them alike; read the ratios. All
peers take the same steps, from the same state in the middle of a run, where a rule drops tokens. Both implementations
are compared, step by step, before they are timed.

    python benchmarks/simulator.py                 # two minutes
    python benchmarks/simulator.py --quick         # seconds
    python benchmarks/simulator.py --device cuda --policies 10000 1000000 --large-policies 264 --out simulator_gpu.json

On a GPU (the last line; not run yet, for want of one) the peers are the torch path, on the whole bank at once, and the
Triton step; its kernel alone besides, where no rule interferes: what a recorded step adds to it is Python, and the
records of all policies on their way to the CPU. Read and exponential go over 2²⁴ logits of the bank, so the exponential
of float64 numbers reads and writes memory there. `torch.compile` is no peer: the torch path branches on its numbers.

How many exponentials a step needs. The statistics of a policy take one per logit, in two passes over the logits: the
maximum, and the sums. A gradient whose coefficients sum to zero moves the sampled logits alone, which takes none. Any
other moves all of them and takes two more, e^d again and e^δ − 1. So a step costs 1 where no rule interferes, and
1 + 2 s with a rule that drops tokens of the share s of the policies (`moved_whole` in the record); what is left is
sampling and bookkeeping, which counts at 100 tokens (a group of 16 is a sixth of them) and not at 151,936.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from processor import processor
from rich.console import Console
from rich.table import Table
from torch import Tensor

from entropy_theory import records
from entropy_theory.control.reducers import LOCAL
from entropy_theory.dynamics import Simulation, SimulationConfig
from entropy_theory.dynamics.grpo import Update
from entropy_theory.program import run_script

STEPS_COMPARED = 5
STEPS_BEFORE = 300
"""Steps before the first that is timed. `clip-b(mu=0.5)` drops next to nothing in the first hundred."""

UNIT = "one exponential per logit"

Peer = tuple[int, Callable[[], None], Callable[[], None], int]


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        policies: How many policies of 100 tokens: a bank in the cache, and one that pays for several threads.
        large_policies: How many policies of 151,936 tokens.
        rules: The rules.
        threads: The second number of threads; the first is one.
        rounds: Times every peer runs.
        device: What runs; on cuda, Triton instead of the compiled loops.
        quick: Few policies and rounds.
        out: Where the result goes, as JSON; no file if omitted.
    """

    policies: tuple[int, ...] = (1000, 10_000)
    large_policies: int = 16
    rules: tuple[str, ...] = ("none", "clip-b(mu=0.5)")
    threads: int = 2
    rounds: int = 15
    device: Literal["cpu", "cuda"] = "cpu"
    quick: bool = False
    out: Path | None = None


def simulation_of(
    rule: str,
    policies: int,
    vocab_size: int,
    dtype: Literal["float32", "float64"],
    impl: Literal["eager", "fused-cpu", "triton"],
    device: Literal["cpu", "cuda"] = "cpu",
) -> Simulation:
    """Start the policies of a table; those of a large vocabulary are uncertain by some nats, so that they all learn."""
    config = SimulationConfig(
        policies=policies,
        vocab_size=vocab_size,
        steps=STEPS_BEFORE + 1000,  # none is timed unrecorded
        record_every=1,
        pairs=0,
        rule=rule,
        dtype=dtype,
        logit_scale=1.0 if vocab_size < 1000 else 4.0,
        correct_share=0.1 if vocab_size < 1000 else 0.5,
        block_elements=1 << (30 if device == "cuda" else 15 if vocab_size < 1000 else 18),
        device=device,
    )
    return Simulation(config, impl=impl)


class FromOneState:
    """A simulation that starts again from the same policies whenever it is timed."""

    def __init__(self, simulation: Simulation, logits: Tensor) -> None:
        self.simulation, self.logits = simulation, logits
        self.step = simulation.step

    def back(self) -> None:
        """Go back, after a step that has the memory at hand."""
        self.reset()
        self.step()
        self.reset()

    def reset(self) -> None:
        """Go back."""
        self.simulation.logits.copy_(self.logits)
        self.simulation.completed = STEPS_BEFORE

    def shares(self, steps: int) -> dict[str, float]:
        """Give the share of tokens dropped in the steps that are timed, and that of policies all of whose logits move.

        Those are the policies with a dropped token; they are counted in the first of the steps, of the torch path.
        """
        policies: Any = self.simulation._policies
        moved: list[float] = []
        move = policies.move

        def seen(logits: Tensor, tokens: Tensor, update: Update, count: int, *, measure: bool) -> Any:
            g = update.coefficients
            moved.append(float((g.sum(-1).abs() > 1e-9 * g.abs().sum(-1)).double().mean()))
            return move(logits, tokens, update, count, measure=measure)

        self.reset()
        policies.move = seen  # of this instance, until it is deleted
        for _ in range(steps):
            self.step()
        del policies.move
        dropped = self.simulation.columns["dropped_share"][STEPS_BEFORE : STEPS_BEFORE + steps]
        return {"dropped_share": float(dropped.mean()), "moved_whole": next(iter(moved), 0.0)}


def from_one_state(compiled: Simulation, torch_path: Simulation) -> tuple[FromOneState, FromOneState]:
    """Take the first steps with compiled code, and put both where they lead."""
    while compiled.completed < STEPS_BEFORE:
        compiled.step()
    logits = compiled.logits.clone()
    return FromOneState(compiled, logits), FromOneState(torch_path, logits)


def compare(first: FromOneState, second: FromOneState) -> dict[str, float]:
    """Take the same steps with both and give their largest differences, of the logits and of the records.

    Raises:
        AssertionError: They differ by more than rounding.
    """
    for state in (first, second):
        state.reset()
        for _ in range(STEPS_COMPARED):
            state.step()
    one, other = first.simulation, second.simulation
    logits = float((one.logits.double() - other.logits.double()).abs().max())
    compared = slice(STEPS_BEFORE, STEPS_BEFORE + STEPS_COMPARED)
    differences = {}
    for name, values in one.columns.items():
        mine, theirs = values[compared], other.columns[name][compared]
        differences[name] = float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-300))
    worst = max(differences.values())
    wide = one.logits.dtype == torch.float64
    assert logits <= (1e-13 if wide else 2e-6), f"the logits differ by {logits}"
    assert worst <= (1e-9 if wide else 1e-6), f"the records differ: {differences}"
    return {"logits": logits, "records": worst}


def repeated(work: Callable[[], object], count: int) -> Callable[[], None]:
    """Do some work several times."""

    def run() -> None:
        for _ in range(count):
            work()

    return run


def interleaved(peers: dict[str, Peer], rounds: int) -> dict[str, dict[str, float]]:
    """Median microseconds per policy, elapsed and of this thread's processor.

    A peer is its number of threads, what it does once to have them and its memory at hand, what is timed, and how many
    policies that is.
    """
    elapsed: dict[str, list[float]] = {name: [] for name in peers}
    processor: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, (threads, prepare, work, policies) in peers.items():
            torch.set_num_threads(threads)
            prepare()
            start, start_processor = time.perf_counter(), time.thread_time()
            work()
            elapsed[name].append((time.perf_counter() - start) / policies)
            processor[name].append((time.thread_time() - start_processor) / policies)
    torch.set_num_threads(1)
    return {
        name: {"microseconds": 1e6 * median(elapsed[name]), "processor_microseconds": 1e6 * median(processor[name])}
        for name in peers
    }


def table_of(
    config: Config, rule: str, policies: int, vocab_size: int, dtype: Literal["float32", "float64"]
) -> dict[str, Any]:
    """Compare and time one rule at one size."""
    calls = max(1, 8_000_000 // (policies * vocab_size))
    after, before = from_one_state(
        *(simulation_of(rule, policies, vocab_size, dtype, impl) for impl in ("fused-cpu", "eager"))
    )
    differences = compare(after, before)
    narrow = after.logits[: max(1, (1 << 18) // vocab_size)].clone()
    wide = narrow.double()  # in the cache, as a policy's logits are
    out = torch.empty_like(wide)

    def exponentials() -> None:
        for _ in range(calls * policies // len(wide)):
            torch.exp(wide, out=out)

    def reads() -> None:
        for _ in range(calls * policies // len(narrow)):
            narrow.amax(-1)

    steps, many = max(1, calls // 8), config.threads
    rows = interleaved(
        {
            "floor: one read": (1, reads, reads, calls * policies // len(narrow) * len(narrow)),
            UNIT: (1, exponentials, exponentials, calls * policies // len(wide) * len(wide)),
            f"{UNIT}, {many} threads": (many, exponentials, exponentials, calls * policies // len(wide) * len(wide)),
            "torch path, 1 thread": (1, before.back, repeated(before.step, steps), steps * policies),
            "compiled, 1 thread": (1, after.back, repeated(after.step, steps), steps * policies),
            f"compiled, {many} threads": (many, after.back, repeated(after.step, steps), steps * policies),
        },
        config.rounds,
    )
    return {
        "rule": rule,
        "shape": [policies, vocab_size],
        "dtype": dtype,
        "group_size": after.simulation.config.group_size,
        "differences": differences,
        **before.shares(steps),
        "rows": rows,
        "compiled_in_exponentials": rows["compiled, 1 thread"]["processor_microseconds"]
        / rows[UNIT]["processor_microseconds"],
        "speed_up": rows["torch path, 1 thread"]["processor_microseconds"]
        / rows["compiled, 1 thread"]["processor_microseconds"],
        "speed_up_of_threads": rows["compiled, 1 thread"]["microseconds"]
        / rows[f"compiled, {many} threads"]["microseconds"],
        "speed_up_of_threads_in_exponentials": rows[UNIT]["microseconds"]
        / rows[f"{UNIT}, {many} threads"]["microseconds"],
    }


def finished(work: Callable[[], object]) -> Callable[[], None]:
    """Do work on the GPU and wait for its end."""

    def run() -> None:
        work()
        torch.cuda.synchronize()

    return run


def table_on_gpu(
    config: Config, rule: str, policies: int, vocab_size: int, dtype: Literal["float32", "float64"]
) -> dict[str, Any]:
    """Compare and time one rule at one size on a GPU."""
    from entropy_theory.dynamics.fused_triton import TritonPolicies  # needs Triton

    after, before = from_one_state(
        *(simulation_of(rule, policies, vocab_size, dtype, impl, "cuda") for impl in ("triton", "eager"))
    )
    differences = compare(after, before)
    calls = max(1, min(500, (1 << 28) // (policies * vocab_size)))
    narrow = after.logits[: max(1, (1 << 24) // vocab_size)].clone()
    wide = narrow.double()
    out, steps = torch.empty_like(wide), max(1, calls // 8)
    works: dict[str, tuple[Callable[[], object], int, int]] = {
        "floor: one read": (lambda: narrow.amax(-1), calls, len(narrow)),
        UNIT: (lambda: torch.exp(wide, out=out), calls, len(wide)),
        "torch path": (before.step, steps, policies),
        "Triton": (after.step, steps, policies),
    }
    if rule == "none":
        simulation, logits = after.simulation, after.logits.clone()
        alone, correct = TritonPolicies(simulation.config, simulation.share, logits.device), simulation.correct
        works["Triton, its kernel alone"] = (
            lambda: alone.step(logits, correct, 0, simulation.rule, LOCAL, measure=True),
            calls,
            policies,
        )
    peers: dict[str, Peer] = {}
    for name, (work, times, count) in works.items():
        prepare = {"torch path": before.back, "Triton": after.back}.get(name, work)
        peers[name] = (1, finished(prepare), finished(repeated(work, times)), times * count)
    rows = interleaved(peers, config.rounds)
    return {
        "rule": rule,
        "shape": [policies, vocab_size],
        "dtype": dtype,
        "group_size": after.simulation.config.group_size,
        "device": "cuda",
        "differences": differences,
        **before.shares(steps),
        "rows": rows,
        "speed_up": rows["torch path"]["microseconds"] / rows["Triton"]["microseconds"],
    }


def render(table: dict[str, Any]) -> Table:
    """Lay out one table; times are of the processor, but elapsed on threads or a GPU; multiples are of one thread."""
    on_gpu = table.get("device") == "cuda"
    policies, vocab_size = table["shape"]
    title = f"{policies:,} policies of {vocab_size:,} tokens, {table['dtype']}, rule {table['rule']}"
    view = Table(title=f"{title}; differences {table['differences']['records']:.0e}", title_justify="left")
    for column in ("", "µs per policy-step", "policy-steps per s", "× one exponential", "× one read"):
        view.add_column(column, justify="left" if not column else "right")
    rows = table["rows"]
    for name, row in rows.items():
        basis = "microseconds" if on_gpu or "threads" in name else "processor_microseconds"
        read, exponential = (rows[floor][basis] for floor in list(rows)[:2])
        view.add_row(
            name,
            f"{row[basis]:.{5 if on_gpu else 3}f}",
            f"{1e6 / row[basis]:,.0f}",
            "" if "threads" in name else f"{row[basis] / exponential:.2f}",
            "" if "threads" in name else f"{row[basis] / read:.1f}",
        )
    return view


def main(config: Config) -> None:
    """Measure, print and write."""
    if config.quick:
        config = Config(**(asdict(config) | {"policies": (200,), "large_policies": 4, "rounds": 3}))
    console = Console(width=120)
    tables = []
    sizes: list[tuple[int, int, Literal["float32", "float64"]]] = [(count, 100, "float64") for count in config.policies]
    for policies, vocab_size, dtype in [*sizes, (config.large_policies, 151_936, "float32")]:
        for rule in config.rules:
            measure = table_on_gpu if config.device == "cuda" else table_of
            table = measure(config, rule, policies, vocab_size, dtype)
            tables.append(table)
            console.print(render(table))
            if config.device == "cuda":
                console.print(f"Triton {table['speed_up']:.1f} times as fast as the torch path")
                continue
            console.print(
                f"compiled at {table['compiled_in_exponentials']:.2f} exponentials, "
                f"{table['speed_up']:.1f} times as fast as the torch path; "
                f"{config.threads} threads {table['speed_up_of_threads']:.2f} times one "
                f"(exponentials alone {table['speed_up_of_threads_in_exponentials']:.2f}); "
                f"{table['dropped_share']:.1%} of the tokens dropped, of {table['moved_whole']:.0%} of the policies"
            )
    if config.out is not None:
        device = processor() if config.device == "cpu" else torch.cuda.get_device_name()
        where = records.environment() | {"device": device}
        records.write_json(
            config.out, {"config": asdict(config) | {"out": None}, "environment": where, "tables": tables}
        )
        console.print(f"Written: {config.out}")


if __name__ == "__main__":
    run_script(main, Config)
