"""Entropy control at fifty million parameters: a decoder from scratch, arithmetic in steps, three arms.

    python simulations/gpu_grpo.py                 # on a GPU: 53M parameters, half an hour per arm or less (estimate)
    python simulations/gpu_grpo.py --quick         # the same chain, tiny, on a CPU in under a minute

A Llama-style decoder is trained on demonstrations, a share of them wrong, and then by TRL's GRPO without control, with
Clip_B, and with a random mask of Clip_B's size, from the same weights. Everything is kept in the output folder; a run
that is killed and started again resumes from its last checkpoint (the warm-up begins again).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from entropy_theory import records
from entropy_theory.program import run_script
from entropy_theory.testbed import arithmetic, decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP = "clip-b(mu=1)"
ARMS = {"GRPO": "none", "Clip_B": CLIP, "random mask": f"random-mask(match='{CLIP}')"}


@dataclass(frozen=True)
class GpuGrpoConfig:
    """Model, task, warm-up and GRPO; the command line and the record.

    Attributes:
        hidden_size: Width d.
        layers: Number of blocks.
        heads: Attention heads.
        numbers: Numbers per expression.
        largest: The largest of them.
        warmup_steps: Supervised steps.
        warmup_batch: Demonstrations per step.
        warmup_rate: Peak rate of AdamW in the warm-up, after 5 % of rising steps, decayed to zero.
        wrong_share: Share of demonstrations with a wrong step.
        arms: Which of GRPO, Clip_B and random mask.
        steps: GRPO steps.
        prompts_per_step: Prompts of a generation batch.
        generations: Completions per prompt.
        learning_rate: Rate of GRPO.
        completion_length: Tokens per completion.
        seeds: Seeds of the GRPO runs.
        quick: The tiny version.
        out: Folder of the runs and of gpu_grpo.json.
    """

    hidden_size: int = 640
    layers: int = 13
    heads: int = 10
    numbers: int = 5
    largest: int = 20
    warmup_steps: int = 4000
    warmup_batch: int = 256
    warmup_rate: float = 5e-4
    wrong_share: float = 0.3
    arms: tuple[str, ...] = tuple(ARMS)
    steps: int = 300
    prompts_per_step: int = 32
    generations: int = 16
    learning_rate: float = 2e-5
    completion_length: int = 64
    seeds: tuple[int, ...] = (0,)
    quick: bool = False
    out: Path = Path("runs/gpu_grpo")


QUICK: dict[str, Any] = {
    "hidden_size": 64,
    "layers": 2,
    "heads": 2,
    "numbers": 2,
    "largest": 9,
    "warmup_steps": 150,
    "warmup_batch": 64,
    "warmup_rate": 3e-3,
    "steps": 4,
    "prompts_per_step": 4,
    "generations": 4,
    "completion_length": 8,
}


def warm_up(config: GpuGrpoConfig, console: Console) -> PreTrainedModel:
    """Train on demonstrations."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = decoder.build_tokenizer()
    sizes = decoder.WarmupConfig(hidden_size=config.hidden_size, layers=config.layers, heads=config.heads)
    model = decoder.build_model(sizes, len(tokenizer), positions=256).to(device).train()
    console.print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", highlight=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.warmup_rate)
    rising = max(1, config.warmup_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (config.warmup_steps - step) / config.warmup_steps)
    )
    generator = np.random.default_rng(0)
    for step in range(config.warmup_steps):
        pairs = arithmetic.demonstrations(
            config.warmup_batch, config.wrong_share, generator, config.numbers, config.largest
        )
        batch = tokenizer([p + a + "<eos>" for p, a in pairs], return_tensors="pt", padding=True).to(device)
        # Padding is on the left: the prompt, which is given and not learned, ends where the answer's tokens begin.
        answers = torch.tensor([len(a) + 1 for _, a in pairs], device=device)
        width = batch["input_ids"].shape[1]
        learned = torch.arange(width, device=device) >= width - answers.unsqueeze(1)
        labels = batch["input_ids"].masked_fill(~learned, -100)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if (step + 1) % max(1, config.warmup_steps // 10) == 0:
            console.print(f"warm-up {step + 1}/{config.warmup_steps}: loss {loss.item():.3f}", highlight=False)
    trained: PreTrainedModel = model.float().cpu()
    return trained


def run_arm(config: GpuGrpoConfig, rule: str, seed: int, warm: Path, prompts: Path, out: Path) -> dict[str, Any]:
    """Run one arm, or resume it, and return what it wrote."""
    from entropy_theory.training.config import TrainConfig
    from entropy_theory.training.run import train

    final = train(
        TrainConfig(
            model=str(warm),
            dataset=str(prompts),
            reward="entropy_theory.testbed.arithmetic:reward",
            rule=rule,
            # The others say what Clip_B would have dropped.
            observe=() if rule == CLIP else (CLIP,),
            steps=config.steps,
            prompts_per_step=config.prompts_per_step,
            generations=config.generations,
            max_completion_length=config.completion_length,
            learning_rate=config.learning_rate,
            bf16=torch.cuda.is_available(),
            seed=seed,
            out=out,
        )
    )
    lines = records.read_lines(out / "metrics.jsonl")
    names = ("entropy", "reward", "distinct_right", "entropy_control/dropped_share")
    return final | {"curves": {name: [line.get(name) for line in lines] for name in names}}


def table_of(results: dict[str, list[dict[str, Any]]]) -> Table:
    """Show the last ten steps of every arm and seed."""
    table = Table(title="means of the last ten steps")
    for name in ("arm", "entropy (nats)", "reward", "distinct right", "dropped", "seconds"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, runs in results.items():
        for run in runs:
            values = [run["final"].get(n, float("nan")) for n in ("entropy", "reward", "distinct_right")]
            dropped = run["final"].get("dropped_share", 0.0)
            table.add_row(arm, *(f"{v:.3f}" for v in values), f"{dropped:.1%}", f"{run['seconds']:.0f}")
    return table


def main(config: GpuGrpoConfig) -> None:
    """Warm up, run the arms, record."""
    if config.quick:
        config = replace(config, **QUICK)
    unknown = set(config.arms) - set(ARMS)
    if unknown:
        raise SystemExit(f"arms: expected some of {', '.join(ARMS)}, received {', '.join(sorted(unknown))}")
    console, start = Console(), time.monotonic()
    with records.exclusive(config.out):
        if records.open_run(config.out, config):
            console.print(f"finished before: {config.out / 'result.json'}")
            return
        warm, prompts = config.out / "warm", config.out / "prompts.jsonl"
        decoder.save_whole(warm, lambda: warm_up(config, console))
        rows = arithmetic.dataset(8192, 1, config.numbers, config.largest).to_list()
        with records.written_whole(prompts) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        results = {
            arm: [
                run_arm(config, ARMS[arm], seed, warm, prompts, config.out / f"{arm.replace(' ', '-')}-{seed}")
                for seed in config.seeds
            ]
            for arm in config.arms
        }
        record = {"configuration": config, "environment": records.environment(), "arms": results}
        records.write_json(config.out / "result.json", record)
    console.print(table_of(results))
    console.print(f"{time.monotonic() - start:.0f} s; written: {config.out / 'result.json'}", highlight=False)


if __name__ == "__main__":
    run_script(main, GpuGrpoConfig)
