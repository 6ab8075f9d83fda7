"""What the influence of every token of a batch costs, as a multiple of one training step over the same tokens.

    python benchmarks/influence_cost.py --out benchmarks/results   # the decoder and the real model; minutes
    python benchmarks/influence_cost.py --models decoder --quick

In turns, medians over rounds, one thread: a training step (a forward and a backward of the policy gradient), the floor;
a forward without gradient; the gradient of mean entropy; and influence by each method, without the check and with it.
Correctness comes first: Σ g D/n against ⟨∇J, ∇H̄⟩ over all rows, and the difference and the derivative at every token.
Peak memory is that of a process of its own for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from entropy_theory import records
from entropy_theory.influence import StepBatch, entropy_gradient, token_influence
from entropy_theory.influence.token_influence import Method
from entropy_theory.program import run_script
from entropy_theory.testbed import decoder
from entropy_theory.testbed.pretrained import resolve_model

ModelName = Literal["decoder", "smollm2"]
SIZES = {"decoder": (256, 4, 9), "smollm2": (32, 44, 16)}
"""Completions, prompt tokens and completion tokens: the demo's batch, and that of the experiments on the real model."""


@dataclass(frozen=True)
class InfluenceCostConfig:
    """What to measure.

    Attributes:
        models: decoder: the demo's, 85,000 parameters, V = 21; smollm2: 134.5 million, V = 49,152 (extra llm).
        rounds: Turns of each measurement.
        memory: Also measure peak memory, in a process of its own for each.
        quick: One round, the decoder alone, no memory.
        out: Folder for influence_cost_cpu.json; no file if omitted.
    """

    models: tuple[ModelName, ...] = ("decoder", "smollm2")
    rounds: int = 5
    memory: bool = True
    quick: bool = False
    out: Path | None = None


def build(name: str) -> tuple[Any, StepBatch]:
    """A model in float32 and random tokens of the size of its experiments."""
    rows, prompt, completion = SIZES[name]
    if name == "decoder":
        model = decoder.build_model(decoder.WarmupConfig(), len(decoder.build_tokenizer()))
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(resolve_model(name), use_safetensors=True, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (rows, prompt + completion), generator=generator)
    mask = torch.ones_like(ids)
    advantages = torch.randn(rows, generator=generator)
    batch = StepBatch(
        ids[:, :prompt], mask[:, :prompt], ids[:, prompt:], mask[:, prompt:], advantages, torch.arange(rows) // 8
    )
    return model.eval(), batch


def measurements(model: Any, batch: StepBatch) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; the training step first."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    inputs = {"input_ids": ids, "use_cache": False, "logits_to_keep": batch.completion_ids.shape[1] + 1}

    def training_step() -> None:
        model.zero_grad()
        log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)
        mine = log_probs.gather(-1, batch.completion_ids[..., None])[..., 0]
        (-(mine * batch.advantages).mean()).backward()

    def forward() -> None:
        with torch.no_grad():
            model(**inputs)

    methods: tuple[Method, ...] = ("jvp", "difference", "output")
    influence: dict[str, Callable[[], Any]] = {
        f"influence, {method}": partial(token_influence, model, batch, method=method, check="none")
        for method in methods
    }
    return {
        "training step": training_step,
        "forward alone": forward,
        "gradient of mean entropy": lambda: entropy_gradient(model, batch),
        **influence,
        "influence, jvp, checked": lambda: token_influence(model, batch, method="jvp"),
    }


def correctness(model: Any, batch: StepBatch) -> dict[str, float]:
    """Relative distances: the sum against reverse mode, and the difference against the derivative."""
    exact = token_influence(model, batch, method="jvp", check="all")
    near = token_influence(model, batch, method="difference", check="none")
    size = float(exact.values.square().mean().sqrt())
    return {
        "sum against reverse mode": exact.check,
        "difference against jvp": float((near.values - exact.values).square().mean().sqrt()) / size,
        "difference, as it states": near.error / size,
    }


def peak(name: str, what: str) -> float:
    """Peak memory of a process that does one thing, in GB; "nothing" loads the model and no more."""
    torch.set_num_threads(1)
    model, batch = build(name)
    if what != "nothing":
        measurements(model, batch)[what]()
    # not getrusage: its peak is inherited from the process that started this one
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(high.split()[1]) / 1e6


def measure(name: str, config: InfluenceCostConfig) -> dict[str, Any]:
    """Measure one model."""
    model, batch = build(name)
    checks = correctness(model, batch)
    todo = measurements(model, batch)
    times: dict[str, list[float]] = {what: [] for what in todo}
    for _ in range(1 if config.quick else config.rounds):
        for what, function in todo.items():
            start = time.perf_counter()
            function()
            times[what].append(time.perf_counter() - start)
    floor = times["training step"]
    rows = {
        what: {
            "seconds": float(f"{median(values):.4g}"),
            "of_a_training_step": float(f"{median(v / f for v, f in zip(values, floor, strict=True)):.4g}"),
        }
        for what, values in times.items()
    }
    if config.memory and not config.quick:
        for what in ("nothing", *todo):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                rows.setdefault(what, {})["peak_gb"] = round(pool.submit(peak, name, what).result(), 2)
    return {"model": name, "tokens": int(batch.valid.sum()), "correctness": checks, "rows": rows}


def main(config: InfluenceCostConfig) -> None:
    """Measure, print, and write if asked."""
    torch.set_num_threads(1)
    tables = [measure(name, config) for name in (("decoder",) if config.quick else config.models)]
    for table in tables:
        print(f"\n{table['model']}, {table['tokens']} tokens")
        for name, value in table["correctness"].items():
            print(f"  {name:34}{value:10.1e}")
        for what, row in table["rows"].items():
            times = f"{row['seconds']:9.3f} s{row['of_a_training_step']:8.2f} x" if "seconds" in row else " " * 21
            print(f"  {what:28}{times}" + (f"{row['peak_gb']:8.2f} GB" if "peak_gb" in row else ""))
    if config.out is not None:
        record = {"config": records.to_data(config), "environment": records.environment(), "tables": tables}
        records.write_json(config.out / "influence_cost_cpu.json", record)


if __name__ == "__main__":
    run_script(main, InfluenceCostConfig)
