"""Token statistics side by side: time, extra memory and error of every way to get them, on a CPU or a GPU.

All peers run in one process on the same tensor, one after the other in each round, so that a slow moment of the machine
hits them alike; read the ratios. The first row of every table is the physical floor: a plain read of the logits, with a
plain write of their gradient, or the matrix product that no computation from hidden states can avoid, in tiles that
nothing keeps. Errors come first: every peer is compared with float64 before any is timed, and the run ends if ours is
off by more than the budget of the tests.

    python benchmarks/token_statistics.py                  # the CPU table; minutes
    python benchmarks/token_statistics.py --quick          # a small one; seconds
    python benchmarks/token_statistics.py --models smollm2 runs/llm/none/model --hidden-rows   # a real model's logits
    python benchmarks/token_statistics.py --device cuda --rows 8192 --hidden-rows 8192 --compile
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from logit_sources import Source, llm_like, of_model
from processor import processor
from rich.console import Console
from rich.table import Table
from token_peers import FIELDS, TRAINERS, naive, official, ours
from torch import Tensor

from entropy_theory import records
from entropy_theory.program import run_script
from entropy_theory.vocab import choose_implementation, token_statistics, token_statistics_from_hidden
from entropy_theory.vocab.from_hidden import TILE_BYTES, TILE_ROWS

# glibc gives large blocks back to the system at once; faulting them in again would be half of what is measured.
WARM_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "34359738368",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "268435456",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = 3e-6
"""Of ours, relative: e^d has a rounding of d in it, 1e-6 for 16 ≤ |d| < 32, and that of the exponential.

The arithmetic is float32 or wider for every type of the logits, and 16 bits are exact in float32.
"""
ENTROPY_WEIGHT = 0.1
COMPARED_ROWS = 16
"""Of the statistics from hidden states: 2,048 rows of logits would be 2.5 GB in float64."""


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        rows: Positions of the logits, each with V of them.
        vocab_size: V.
        models: Language models, by name or folder, whose logits at the tokens that they write are measured instead of
            drawn ones; V is theirs.
        hidden_rows: Positions of the measurement from hidden states; empty leaves it out.
        hidden_size: Width of the hidden states.
        dtypes: Types of the logits.
        threads: Numbers of threads on a CPU.
        rounds: Times every peer runs.
        device: "cpu" or "cuda".
        compile: Also torch.compile of the naive formula; needs a C++ compiler on a CPU.
        quick: Few rows, rounds and one number of threads.
        out: Where the result goes, as JSON; no file if omitted.
    """

    rows: int = 128
    vocab_size: int = 151_936
    models: tuple[str, ...] = ()
    hidden_rows: tuple[int, ...] = (128, 1024, 2048)
    hidden_size: int = 896
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 15
    device: str = "cpu"
    compile: bool = False
    quick: bool = False
    out: Path | None = None


# -- measuring --------------------------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(peers: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Time all peers, one after the other in each round: median and quartiles, in milliseconds.

    The processor time of the process is noted beside: with one thread it is the fairer figure on a shared machine.
    """
    times: dict[str, list[float]] = {name: [] for name in peers}
    busy: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds + 1):
        for name, run in peers.items():
            synchronize(device)
            start, start_busy = time.perf_counter(), time.process_time()
            result = run()
            synchronize(device)
            times[name].append((time.perf_counter() - start) * 1e3)
            busy[name].append((time.process_time() - start_busy) * 1e3)
            del result
    summary = {}
    for name, values in times.items():
        low, median, high = quantiles(values[1:], n=4)  # the first round warms up
        summary[name] = {"median_ms": median, "lower_quartile_ms": low, "upper_quartile_ms": high}
        summary[name]["median_processor_ms"] = quantiles(busy[name][1:], n=4)[1]
    return summary


def extra_memory(run: Callable[[], Any], device: str) -> float:
    """Measure the peak memory beside input and output, in MiB: of the process on Linux, of the allocator on a GPU."""
    run()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = run()
        peak = torch.cuda.max_memory_allocated()
    else:
        if not sys.platform.startswith("linux"):
            return float("nan")
        ctypes.CDLL(None).malloc_trim(0)  # hand back what earlier peers left
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
        before = _status("VmRSS")
        result = run()
        peak = _status("VmHWM")
    tensors = result if isinstance(result, tuple) else (result,)
    outputs = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
    return max(0.0, (peak - before - outputs) / 2**20)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def plain_read(logits: Tensor) -> Tensor:
    """Read every byte once, as fast as torch can: as integers, whose maximum is vectorised and looks for no NaN.

    The maximum of 16-bit floats takes twice as long on a CPU, and more than that of float32, which has twice the bytes.
    """
    odd = logits.shape[-1] * logits.element_size() % 4
    return logits.view(torch.int16 if odd else torch.int32).amax(-1)


def product_in_tiles(hidden: Tensor, matrix: Tensor) -> Iterator[Tensor]:
    """Make the logits as the implementation does, tile after tile in one buffer: the same products, to the bit."""
    rows = min(len(hidden), TILE_ROWS[hidden.device.type])
    words = max(1, min(len(matrix), TILE_BYTES[hidden.device.type] // hidden.element_size() // rows))
    buffer = hidden.new_empty(rows * words)
    for part in matrix.split(words):
        for block in hidden.split(rows):
            tile = buffer[: len(block) * len(part)].view(len(block), len(part))
            yield torch.mm(block, part.T, out=tile)


# -- errors -----------------------------------------------------------------------------------------------------------


def within(budget: float, error: float, name: str) -> float:
    """Return the error of a peer; that of ours ends the run beyond the budget, or as NaN."""
    if name.startswith("ours") and not error <= budget:
        raise SystemExit(f"{name}: off by {error:.1e} where {budget:.1e} is allowed; nothing is timed")
    return error


def errors_of(name: str, values: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the worst relative error of each field over the rows; ours is held to the budget.

    S_c of a token off the maximum is a difference of S and N: the budget is of S there.
    """
    errors = {}
    for field, value, answer in zip(FIELDS, values, exact, strict=True):
        off, size = (value.double() - answer).abs(), answer.abs()
        scale = size + exact[2].abs() if field == "centered_discriminant" else size
        within(TOLERANCE, float((off / (scale + 1e-31)).max()), f"{name}, {field}")
        errors[f"error_{field}"] = float((off / size).max())
    return errors


def gradient_error(gradient: Tensor, logits: Tensor, tokens: Tensor, weights: Tensor, entropy_weight: float) -> float:
    """Return the worst error over the rows, as part of the row's largest entry, the scale on which it is used.

    The exact gradient of a log p_y + b H is a (δ_y − p) − b p (log p + H), with 1 − p_y off by a rounding of float64.
    """
    slack = 6e-8 if gradient.dtype == torch.float16 else 2e-14  # the fixed step of small float16 numbers
    worst = torch.zeros((), dtype=torch.float64, device=logits.device)
    for row, token, weight, found in zip(logits, tokens, weights.double(), gradient, strict=True):
        log_p = row.double().log_softmax(-1)
        p = log_p.exp()
        exact = -p * (1 + entropy_weight * (log_p - (p * log_p).sum()))
        exact[token] += 1
        exact *= weight
        off = ((found - exact).abs().max() - slack).clamp_min(0)
        worst = torch.maximum(worst, off / exact.abs().max().clamp_min(1e-31))
    return float(worst)


# -- the three tables -------------------------------------------------------------------------------------------------


def statistics_table(config: Config, source: Source, dtype: str, threads: int) -> dict[str, Any]:
    """Measure the statistics from logits, without gradient."""
    logits, tokens = source.logits.to(DTYPES[dtype]), source.tokens
    exact = ours("eager")(logits.double(), tokens)
    fused = "triton" if config.device == "cuda" else "fused-cpu"
    functions: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {"official composition": official}
    functions |= {f"{name} + baseline": run for name, run in TRAINERS.items() if find_spec(name.lower()) is not None}
    functions["naive, one log-softmax"] = naive
    if config.compile:
        functions["naive, torch.compile"] = torch.compile(naive, dynamic=False)
    functions |= {"ours, eager": ours("eager"), f"ours, {fused}": ours(fused)}
    errors = {name: errors_of(name, run(logits, tokens), exact) for name, run in functions.items()}
    peers: dict[str, Callable[[], Any]] = {"floor: one read": lambda: plain_read(logits)}
    peers |= {name: partial(run, logits, tokens) for name, run in functions.items()}
    rows = interleaved(peers, config.rounds, config.device)
    for name, run in peers.items():
        rows[name]["extra_mib"] = extra_memory(run, config.device)
        rows[name] |= errors.get(name, {})
    return {
        "table": "statistics",
        "dtype": dtype,
        "device": config.device,
        "threads": threads,
        "logits": source.name,
        "mean_entropy": source.mean_entropy(),
        "shape": list(logits.shape),
        "against": "official composition",
        "auto": choose_implementation(logits),
        "rows": rows,
    }


def training_table(config: Config, source: Source, dtype: str, threads: int) -> dict[str, Any]:
    """Measure forward and backward of log p and H; ours computes every statistic on the way.

    The floor is one read of the logits and one write of their gradient; whoever keeps nothing of the size of the logits
    has to read them twice.
    """
    from trl.trainer.utils import selective_log_softmax

    logits, tokens = source.logits.detach().to(DTYPES[dtype]).requires_grad_(), source.tokens
    weights = torch.linspace(-1, 1, len(tokens), device=config.device)
    written = torch.empty_like(logits)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad((loss(logits, tokens) * weights).sum(), logits)
        return gradient

    def read_and_write() -> Tensor:
        written.zero_()
        return plain_read(logits.detach())

    def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
        return token_statistics(logits, tokens).log_probs

    def both(logits: Tensor, tokens: Tensor) -> Tensor:
        statistics = token_statistics(logits, tokens)
        return statistics.log_probs + ENTROPY_WEIGHT * statistics.entropy

    losses: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
        "TRL selective_log_softmax": (selective_log_softmax, 0.0),
        "ours, log p": (log_probs, 0.0),
        "ours, log p and H": (both, ENTROPY_WEIGHT),
    }
    # An entry of 16 bits is rounded once more, by half of eps.
    budget = TOLERANCE + (0.0 if logits.dtype == torch.float32 else torch.finfo(logits.dtype).eps)
    errors = {
        name: within(budget, gradient_error(step(loss), logits.detach(), tokens, weights, entropy_weight), name)
        for name, (loss, entropy_weight) in losses.items()
    }
    peers: dict[str, Callable[[], Any]] = {"floor: one read, one write": read_and_write}
    peers |= {name: partial(step, loss) for name, (loss, _) in losses.items()}
    rows = interleaved(peers, config.rounds, config.device)
    for name, run in peers.items():
        rows[name]["extra_mib"] = extra_memory(run, config.device)
        rows[name] |= {"error_gradient": errors[name]} if name in errors else {}
    return {
        "table": "forward and backward",
        "dtype": dtype,
        "device": config.device,
        "threads": threads,
        "logits": source.name,
        "mean_entropy": source.mean_entropy(),
        "shape": list(logits.shape),
        "against": "TRL selective_log_softmax",
        "rows": rows,
    }


def hidden_table(config: Config, dtype: str, threads: int, count: int) -> dict[str, Any]:
    """Measure the statistics from hidden states and the output matrix.

    They are compared on a few rows, each peer with float64 on a product of its own shape: another order of the sums
    over d, and in 16 bits the rounding of each logit, would weigh more than what is compared.
    """
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(count, config.hidden_size, generator=generator)
    matrix = torch.randn(config.vocab_size, config.hidden_size, generator=generator) * 2.5 / config.hidden_size**0.5
    tokens = torch.randint(0, config.vocab_size, (count,), generator=generator).to(config.device)
    hidden, matrix = (x.to(config.device, DTYPES[dtype]) for x in (hidden, matrix))

    def fused() -> tuple[Tensor, ...]:
        statistics = token_statistics_from_hidden(hidden, matrix, tokens)
        return tuple(getattr(statistics, name) for name in FIELDS)

    few, exact = slice(COMPARED_ROWS), ours("eager")
    product = hidden[few] @ matrix.T
    block = hidden[: TILE_ROWS[hidden.device.type]]
    tiles = torch.cat([tile[few].clone() for tile in product_in_tiles(block, matrix)], dim=-1)
    official_values, our_values = official(product, tokens[few]), tuple(value[few] for value in fused())
    usual, own = "materialise + official", "ours, from hidden"
    errors = {
        usual: errors_of(usual, official_values, exact(product.double(), tokens[few])),
        own: errors_of(own, our_values, exact(tiles.double(), tokens[few])),
    }
    del product, tiles
    peers: dict[str, Callable[[], Any]] = {
        "floor: product in tiles": lambda: deque(product_in_tiles(hidden, matrix), maxlen=0),
        "product, materialised": lambda: hidden @ matrix.T,
        usual: lambda: official(hidden @ matrix.T, tokens),
        own: fused,
    }
    rounds = max(3, config.rounds // 3)
    rows = interleaved(peers, rounds, config.device)
    for name, run in peers.items():
        rows[name]["extra_mib"] = extra_memory(run, config.device)
        rows[name] |= errors.get(name, {})
    return {
        "table": "from hidden states",
        "dtype": dtype,
        "device": config.device,
        "threads": threads,
        "shape": [count, config.hidden_size, config.vocab_size],
        "against": usual,
        "rows": rows,
    }


# -- the run ----------------------------------------------------------------------------------------------------------


def tables(config: Config) -> Iterator[dict[str, Any]]:
    """Measure one table after the other."""
    sources = [partial(of_model, name, config.rows, config.device) for name in config.models]
    for make in sources or [partial(llm_like, config.rows, config.vocab_size, config.device)]:
        source = make()
        for threads in config.threads if config.device == "cpu" else (torch.get_num_threads(),):
            torch.set_num_threads(threads)
            for dtype in config.dtypes:
                with torch.no_grad():
                    yield statistics_table(config, source, dtype, threads)
                if find_spec("trl") is not None:
                    yield training_table(config, source, dtype, threads)
    for dtype in config.dtypes:
        for count in config.hidden_rows:
            torch.set_num_threads(config.threads[0])
            with torch.no_grad():
                yield hidden_table(config, dtype, config.threads[0], count)


def render(table: dict[str, Any]) -> Table:
    """Lay out one table for the terminal; times are multiples of the floor, speed-ups are over the usual way.

    The ratios are of processor time with one CPU thread, of elapsed time otherwise.
    """
    shape = " × ".join(f"{n:,}" for n in table["shape"])
    title = f"{table['table']}: {shape}, {table['dtype']}, {table['threads']} threads"
    if "logits" in table:
        title += f"; {table['logits']}, mean entropy {table['mean_entropy']:.2f} nats"
    view = Table(title=title, title_justify="left")
    names = list(table["rows"])
    basis = "median_processor_ms" if table["threads"] == 1 and table["device"] == "cpu" else "median_ms"
    floor, usual = (table["rows"][name][basis] for name in (names[0], table["against"]))
    fields = {"entropy": "H", "baseline": "N", "centered_discriminant": "S_c"}
    if table["table"] == "forward and backward":
        fields = {"gradient": "∂z"}
    errors = [f"error {word}" for word in fields.values()]
    for column in ("", "ms (quartiles)", "× floor", "speed-up", "extra MiB", *errors):
        view.add_column(column, justify="left" if not column else "right")
    for name, row in table["rows"].items():
        median = row["median_ms"]
        view.add_row(
            name,
            f"{median:.2f} ({row['lower_quartile_ms']:.2f}–{row['upper_quartile_ms']:.2f})",
            f"{row[basis] / floor:.2f}",
            f"{usual / row[basis]:.2f}",
            f"{row['extra_mib']:.1f}",
            *(f"{row[f'error_{field}']:.0e}" if f"error_{field}" in row else "" for field in fields),
        )
    return view


def main(config: Config) -> None:
    """Measure, print and write."""
    if config.quick:
        small = {"rows": 16, "hidden_rows": (32,), "rounds": 5, "threads": config.threads[:1]}
        config = Config(**(asdict(config) | small))
    if config.device == "cpu" and sys.platform.startswith("linux") and not os.environ.get("MALLOC_TOP_PAD_"):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WARM_ALLOCATOR)  # glibc reads it at start
    console = Console(width=120)
    results = []
    for table in tables(config):
        results.append(table)
        console.print(render(table))
    where = records.environment() | {"allocator": {name: os.environ.get(name) for name in WARM_ALLOCATOR}}
    if config.device == "cpu":
        where["device"] = processor()
    record = {"config": asdict(config) | {"out": None}, "environment": where, "tables": results}
    if config.out is not None:
        records.write_json(config.out, record)
        console.print(f"Written: {config.out}")


if __name__ == "__main__":
    run_script(main, Config)
