"""Token statistics side by side: time, extra memory and error of every way to get them, on a CPU or a GPU.

All peers run in one process on the same tensor, one after the other in each round, so that a slow moment of the machine
hits them alike; read the ratios. The first column of every table is the physical floor: a plain read of the logits
(``amax``), or the matrix product that no computation from hidden states can avoid. Errors come first: a peer is timed
after it was compared with float64.

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
from torch import Tensor

from entropy_theory import records
from entropy_theory.program import run_script
from entropy_theory.vocab import choose_implementation, token_statistics, token_statistics_from_hidden

# glibc gives large blocks back to the system at once; faulting them in again would be half of what is measured.
WARM_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "34359738368",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "268435456",
}
FIELDS = ("log_probs", "entropy", "discriminant", "baseline", "centered_discriminant")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


# -- peers ------------------------------------------------------------------------------------------------------------


def official(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """The composition a user of the authors' code runs, written from its description, over the whole tensor."""
    if logits.dtype == torch.float32:
        chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
        log_probs = chosen - torch.stack([row.logsumexp(-1) for row in logits])
    else:
        pairs = zip(logits, tokens, strict=True)
        log_probs = torch.stack([row.log_softmax(-1).gather(-1, token[None])[0] for row, token in pairs])
    entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    squared = p * p
    baseline = squared.sum(-1) * entropy + (squared * log_p).sum(-1)
    discriminant = log_probs.exp() * (entropy + log_probs)
    return log_probs, entropy, discriminant, baseline, discriminant - baseline


def completed(logits: Tensor, log_probs: Tensor, entropy: Tensor) -> tuple[Tensor, ...]:
    """Add to a trainer's log-probabilities and entropy what no trainer has: the baseline, as in ``official``."""
    log_p = logits.float().log_softmax(-1)
    squared = log_p.exp() ** 2
    baseline = squared.sum(-1) * entropy + (squared * log_p).sum(-1)
    discriminant = log_probs.exp() * (entropy + log_probs)
    return log_probs, entropy, discriminant, baseline, discriminant - baseline


def with_trl(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Call the functions of TRL for the log-probabilities and the entropy."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    return completed(logits, selective_log_softmax(logits, tokens), entropy_from_logits(logits))


def with_verl(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Call the functions of verl for the log-probabilities and the entropy."""
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    return completed(logits, logprobs_from_logits(logits, tokens), entropy_from_logits(logits))


def naive(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Every definition as it is written, from one log-softmax."""
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    weighted = p * log_p
    entropy = -weighted.sum(-1)
    baseline = (p * p).sum(-1) * entropy + (p * weighted).sum(-1)
    log_probs = log_p.gather(-1, tokens[:, None]).squeeze(-1)
    discriminant = log_probs.exp() * (entropy + log_probs)
    return log_probs, entropy, discriminant, baseline, discriminant - baseline


TRAINERS = {"TRL": with_trl, "verl": with_verl}


def ours(impl: str) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Return one of the package's implementations in the form of the peers."""

    def run(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        statistics = token_statistics(logits, tokens, impl=impl)  # type: ignore[arg-type]
        return tuple(getattr(statistics, name) for name in FIELDS)

    return run


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


def worst_error(values: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the worst relative error of each field over the rows."""
    pairs = zip(FIELDS, values, exact, strict=True)
    return {name: float(((v.double() - e).abs() / e.abs()).max()) for name, v, e in pairs}


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
    errors = {name: worst_error(run(logits, tokens), exact) for name, run in functions.items()}
    peers: dict[str, Callable[[], Any]] = {"floor: amax": lambda: logits.amax(-1)}
    peers |= {name: partial(run, logits, tokens) for name, run in functions.items()}
    rows = interleaved(peers, config.rounds, config.device)
    for name, run in peers.items():
        rows[name]["extra_mib"] = extra_memory(run, config.device)
        rows[name] |= {f"error_{field}": value for field, value in errors.get(name, {}).items()}
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

    logits, tokens = source.logits.to(DTYPES[dtype]).requires_grad_(), source.tokens
    weights = torch.linspace(-1, 1, len(tokens), device=config.device)
    written = torch.empty_like(logits)

    def step(log_probs: Callable[[], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad((log_probs() * weights).sum(), logits)
        return gradient

    def read_and_write() -> Tensor:
        written.zero_()
        return logits.detach().amax(-1)

    def both(logits: Tensor, tokens: Tensor) -> Tensor:
        statistics = token_statistics(logits, tokens)
        return statistics.log_probs + 0.1 * statistics.entropy

    peers: dict[str, Callable[[], Any]] = {
        "floor: one read, one write": read_and_write,
        "TRL selective_log_softmax": lambda: step(lambda: selective_log_softmax(logits, tokens)),
        "ours, log p": lambda: step(lambda: token_statistics(logits, tokens).log_probs),
        "ours, log p and H": lambda: step(lambda: both(logits, tokens)),
    }
    rows = interleaved(peers, config.rounds, config.device)
    for name, run in peers.items():
        rows[name]["extra_mib"] = extra_memory(run, config.device)
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
    """Measure the statistics from hidden states and the output matrix."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(count, config.hidden_size, generator=generator)
    matrix = torch.randn(config.vocab_size, config.hidden_size, generator=generator) * 2.5 / config.hidden_size**0.5
    tokens = torch.randint(0, config.vocab_size, (count,), generator=generator).to(config.device)
    hidden, matrix = (x.to(config.device, DTYPES[dtype]) for x in (hidden, matrix))

    def fused() -> tuple[Tensor, ...]:
        statistics = token_statistics_from_hidden(hidden, matrix, tokens)
        return tuple(getattr(statistics, name) for name in FIELDS)

    peers: dict[str, Callable[[], Any]] = {
        "floor: matrix product": lambda: hidden @ matrix.T,
        "materialise + official": lambda: official(hidden @ matrix.T, tokens),
        "ours, from hidden": fused,
    }
    rounds = max(3, config.rounds // 3)
    rows = interleaved(peers, rounds, config.device)
    for name, run in peers.items():
        rows[name]["extra_mib"] = extra_memory(run, config.device)
    return {
        "table": "from hidden states",
        "dtype": dtype,
        "device": config.device,
        "threads": threads,
        "shape": [count, config.hidden_size, config.vocab_size],
        "against": "materialise + official",
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
    for column in ("", "ms (quartiles)", "× floor", "speed-up", "extra MiB", "error H", "error N", "error S_c"):
        view.add_column(column, justify="left" if not column else "right")
    for name, row in table["rows"].items():
        median = row["median_ms"]
        errors = (row.get(f"error_{field}") for field in ("entropy", "baseline", "centered_discriminant"))
        view.add_row(
            name,
            f"{median:.2f} ({row['lower_quartile_ms']:.2f}–{row['upper_quartile_ms']:.2f})",
            f"{row[basis] / floor:.2f}",
            f"{usual / row[basis]:.2f}",
            f"{row['extra_mib']:.1f}",
            *("" if error is None else f"{error:.0e}" for error in errors),
        )
    return view


def main(config: Config) -> None:
    """Measure, print and write."""
    if config.quick:
        small = {"rows": 16, "hidden_rows": (256,), "rounds": 5, "threads": config.threads[:1]}
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
