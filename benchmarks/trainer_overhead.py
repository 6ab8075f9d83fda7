"""What entropy control costs over plain TRL: time per optimizer step and peak memory.

    python benchmarks/trainer_overhead.py --out benchmarks/results   # two models; an hour on a quiet machine
    python benchmarks/trainer_overhead.py --model smollm2 --settings one-pass extra   # a real model; another hour
    python benchmarks/trainer_overhead.py --quick                    # the demo model, a few steps

One trainer is TRL's own class for one generation batch and the controlled class for another, in pairs of random order,
so a slow moment of the machine hits both. Every turn starts from the same random state and learns at rate 0, so that
both write, score and differentiate the same tokens: what differs is the control. Exactness comes first: with the rule
``none`` the update must be plain TRL's, at a rate that is not 0. The row "plain TRL again" measures nothing, and says
how far off the others may be.

The settings: `old`, two passes over a batch, where TRL computes old log-probabilities anyway; `one-pass`, where the
training forward serves; `extra`, two micro-batches and one pass over them, where control adds a forward; `live`, two
passes with a ratio-based rule, whose loss replaces TRL's. The row "plain TRL and a forward" is the floor of `extra`:
the body of the model, without gradient, over the same tokens. Control may cost as much there, and the 95 % of "plain
TRL again" more.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any, Literal

import torch
import tyro
from overhead_table import FORWARD, PLAIN, table_of
from rich.console import Console
from scipy.stats import binom
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from entropy_theory import records
from entropy_theory.bridge.trl import EntropyControlledGRPOTrainer
from entropy_theory.bridge.trl.checkpoints import boundary
from entropy_theory.program import run_script
from entropy_theory.testbed import decoder, sum_task
from entropy_theory.testbed.pretrained import resolve_model
from entropy_theory.testbed.tasks import load_task
from entropy_theory.vocab import token_statistics

ModelName = Literal["demo", "vocab", "smollm2"]
PASSES = {"old": 2, "one-pass": 1, "extra": 1, "live": 2}
MICRO_BATCHES = {"extra": 2}


@dataclass(frozen=True)
class Size:
    """Batch of a model: prompts, completions of each, and their tokens (None: as the configuration says)."""

    prompts: int
    generations: int
    completion: int | None


SIZES = {"demo": Size(16, 16, sum_task.ANSWER_LENGTH + 1), "vocab": Size(2, 4, None), "smollm2": Size(4, 8, 16)}


@dataclass(frozen=True)
class OverheadConfig:
    """What to measure.

    Attributes:
        models: demo: the demo's decoder, 85k parameters, 256 completions; vocab: V = 151,936, d = 896, 2 layers, 8
            completions; both with random weights. smollm2: the real model, V = 49,152, 32 completions of 16 tokens.
        settings: old, one-pass, extra, live; see above.
        rules: Rules of all settings but live, with the demo model.
        vocab_rules: The same with the others.
        live_rules: Rules of the setting live.
        rounds: Pairs of turns with the demo model.
        vocab_rounds: The same with the others.
        completion_length: Tokens per completion of the model vocab.
        threads: Threads on a CPU.
        memory: Runs of each trainer for its peak memory with the first rule, on a CPU in processes of their own; one
            with the others. 0: none.
        device: "cpu" or "cuda".
        quick: The demo model alone, few rounds.
        out: Folder for trainer_overhead_DEVICE.json, with the models' names where they are chosen; none if omitted.
    """

    models: Annotated[tuple[ModelName, ...], tyro.conf.arg(aliases=["--model"])] = ("demo", "vocab")
    settings: tuple[Literal["old", "one-pass", "extra", "live"], ...] = ("old", "one-pass", "extra", "live")
    rules: tuple[str, ...] = ("clip-b", "clip-v", "high-entropy", "random-mask(match='clip-b')")
    vocab_rules: tuple[str, ...] = ("clip-b", "clip-v")
    live_rules: tuple[str, ...] = ("ppo-clip", "kl-cov")
    rounds: int = 150
    vocab_rounds: int = 8
    completion_length: int = 32
    threads: int = 2
    memory: int = 5
    device: Literal["cpu", "cuda"] = "cpu"
    quick: bool = False
    out: Path | None = None


def build_model(name: ModelName, device: str) -> Any:
    """A model: the real one, or one with random weights."""
    if name == "smollm2":
        return AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=torch.float32).to(device)
    if name == "demo":
        return decoder.build_model(decoder.WarmupConfig(), len(decoder.build_tokenizer())).to(device)
    torch.manual_seed(0)
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Qwen2Config(vocab_size=151_936, num_hidden_layers=2, tie_word_embeddings=True, **sizes, **special)
    return Qwen2ForCausalLM(config).to(device)


def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Something that differs within every group; the task does not matter here."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def build_tokenizer(name: ModelName) -> Any:
    """The tokenizer that fits the model's task."""
    if name == "smollm2":
        return AutoTokenizer.from_pretrained(resolve_model(name), padding_side="left")
    return decoder.build_tokenizer()


def prompts(name: ModelName, units: int) -> Any:
    """The same few prompts for every generation batch."""
    each = SIZES[name].prompts
    few = load_task("addition", each, 0, chat=True).prompts if name == "smollm2" else sum_task.dataset(each, 0)
    return few.select([row for _ in range(units) for row in range(each)])


def build_trainer(
    config: OverheadConfig, name: ModelName, setting: str, rule: str | None, folder: str, units: int, **changes: Any
) -> GRPOTrainer:
    """Build plain TRL (``rule`` None) or the controlled trainer for so many generation batches."""
    size = SIZES[name]
    options: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": size.prompts * size.generations // MICRO_BATCHES.get(setting, 1),
        "gradient_accumulation_steps": MICRO_BATCHES.get(setting, 1),
        "num_generations": size.generations,
        "max_completion_length": size.completion or config.completion_length,
        "num_iterations": PASSES[setting],
        "max_steps": units * PASSES[setting],
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
        "use_cpu": config.device == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "shuffle_dataset": False,
    }
    trainer = (GRPOTrainer if rule is None else EntropyControlledGRPOTrainer)(
        model=build_model(name, config.device),
        reward_funcs=reward,
        args=GRPOConfig(**(options | changes)),
        train_dataset=prompts(name, units),
        processing_class=build_tokenizer(name),
        **({} if rule is None else {"rule": rule}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class WithForward(GRPOTrainer):
    """Plain TRL, and one forward of the model's body over the tokens that control would score."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"][:, :-1]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"][:, :-1]], dim=1)
        rows = 2 * self.args.per_device_train_batch_size  # as control takes them
        with torch.no_grad():
            for block, its_mask in zip(ids.split(rows), mask.split(rows), strict=True):
                self.model(input_ids=block, attention_mask=its_mask, use_cache=False, logits_to_keep=1)
        return output


# -- exactness --------------------------------------------------------------------------------------------------------


def check_exactness(config: OverheadConfig, name: ModelName, setting: str, folder: str) -> float:
    """Refuse to time anything unless the neutral rule makes plain TRL's update: returns how far off it is, relative L2.

    To the bit with the demo's vocabulary. With a large one control makes TRL's old log-probabilities itself, equal to
    rounding; one generation batch is compared, because policies that differ by rounding come to sample differently.
    """
    demo, ended = name == "demo", []
    for rule in (None, "none"):
        trainer = build_trainer(config, name, setting, rule, folder, 2 if demo else 1, learning_rate=1e-3)
        start = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        ended.append([p.detach() - s for p, s in zip(trainer.model.parameters(), start, strict=True)])
        del trainer, start
        gc.collect()
    plain, ours = ended
    size = sum(float(a.double().square().sum()) for a in plain) ** 0.5
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(plain, ours, strict=True)) ** 0.5
    # Only where old log-probabilities are ours does rounding differ: 8e-6 of the update was measured.
    exact = demo or PASSES[setting] == 1
    if not size > 0 or apart > (0.0 if exact else 1e-4 * size):
        raise SystemExit(f"{name}, {setting}: with the rule none the update is {apart / size:.1e} off plain TRL's")
    return apart / size


# -- time -------------------------------------------------------------------------------------------------------------


class Turns(TrainerCallback):
    """Makes one trainer plain TRL's for one generation batch and a controlled one for another, and times each.

    The class changes between generation batches, so both share weights, optimizer, threads and heap, and take turns
    over the same prompts from the same random state: what differs is the control. Each pair is in random order.
    """

    def __init__(self, trainer: GRPOTrainer, classes: Sequence[type], device: str) -> None:
        self.trainer, self.classes, self.device = trainer, classes, device
        self.period = boundary(trainer.args)
        self.wall: list[list[float]] = [[], []]
        self.process: list[list[float]] = [[], []]
        self.peak: list[list[int]] = [[], []]
        self._order = random.Random(0)
        self._arms: list[int] = []
        self._arm: int | None = None
        trainer.add_callback(self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Between generation batches: stop one clock, start the other."""
        if state.global_step % self.period:
            return
        self._end()
        if not self._arms:
            self._arms = self._order.sample([0, 1], 2)
        self._arm = self._arms.pop()
        self.trainer.__class__ = self.classes[self._arm]
        torch.manual_seed(len(self.wall[self._arm]))  # the same for both
        gc.collect()  # what one left behind is not the other's to clear
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter(), time.process_time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Spare the collections between turns what is there to stay."""
        gc.collect()
        gc.freeze()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the last batch."""
        self._end()
        gc.unfreeze()

    def _end(self) -> None:
        if self._arm is None:
            return
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.peak[self._arm].append(torch.cuda.max_memory_allocated())
        self.wall[self._arm].append(time.perf_counter() - self._start[0])
        self.process[self._arm].append(time.process_time() - self._start[1])
        self._arm = None


def measure(config: OverheadConfig, name: ModelName, setting: str, rule: str, folder: str) -> dict[str, Any]:
    """Time plain and controlled generation batches, turn by turn."""
    rounds, warm = (config.rounds, 3) if name == "demo" else (config.vocab_rounds, 1)
    others: dict[str, type] = {PLAIN: GRPOTrainer, FORWARD: WithForward}
    trainer = build_trainer(config, name, setting, "none" if rule in others else rule, folder, 2 * (rounds + warm))
    ours = others.get(rule, type(trainer))
    turns = Turns(trainer, (GRPOTrainer, ours), config.device)
    trainer.train()
    result: dict[str, Any] = {"model": name, "setting": setting, "rule": rule, "rounds": rounds}
    for clock in ("wall", "process"):
        before, after = (times[warm:] for times in getattr(turns, clock))
        ratios = [b / a - 1 for a, b in zip(before, after, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        result[clock] = {
            "plain": median(before) / turns.period,
            "controlled": median(after) / turns.period,
            "overhead": median(ratios),
            "interval": median_interval(ratios),
            "quartiles": [low, high],
        }
    if config.device == "cuda":
        result["memory"] = {"plain": max(turns.peak[0][warm:]), "controlled": max(turns.peak[1][warm:])}
    return result


def median_interval(values: Sequence[float]) -> list[float]:
    """Order statistics between which the median lies with 95 % confidence, whatever the distribution."""
    low, high = binom.interval(0.95, len(values), 0.5)
    ordered = sorted(values)
    return [ordered[max(int(low) - 1, 0)], ordered[min(int(high), len(values) - 1)]]


# -- memory -----------------------------------------------------------------------------------------------------------


def peak_of_process(config: OverheadConfig, name: ModelName, setting: str, rule: str | None, loops: bool) -> int:
    """Peak resident bytes of a process that takes a few steps and ends; with the compiled loops loaded if asked."""
    be_quiet()
    torch.set_num_threads(config.threads)
    if loops:
        token_statistics(torch.zeros(2, 8), torch.zeros(2, dtype=torch.long), impl="fused-cpu")
    with tempfile.TemporaryDirectory() as folder:
        build_trainer(config, name, setting, rule, folder, 20 if name == "demo" else 2).train()
    # The kernel's figure for this program alone; getrusage would count what the parent had when it started this one.
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(high.split()[1]) * 1024


def measure_memory(config: OverheadConfig, name: ModelName, setting: str, rule: str) -> dict[str, int]:
    """Peak memory of either trainer, each in a process of its own; medians of a few with the demo model.

    Where the vocabulary is large, control runs compiled loops, and a compiler stays in memory, whatever the size of
    model and batch: a plain trainer beside it is measured too.
    """
    arms = {"plain": (None, False), "controlled": (rule, False)}
    if name != "demo":
        arms["plain beside the loops"] = (None, True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = {
            arm: [
                pool.submit(peak_of_process, config, name, setting, *how).result()
                for _ in range(config.memory if name == "demo" else 1)
            ]
            for arm, how in arms.items()
        }
    return {arm: int(median(values)) for arm, values in peaks.items()}


# -- the whole --------------------------------------------------------------------------------------------------------


def be_quiet() -> None:
    """Keep warnings and progress bars of the libraries out of the tables."""
    import datasets
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore")


def main(config: OverheadConfig) -> None:
    """Check, time, print, and record if asked."""
    be_quiet()
    if config.quick:
        config = replace(config, models=("demo",), rules=("clip-b",), live_rules=("ppo-clip",), rounds=6, memory=1)
    torch.set_num_threads(config.threads)
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in config.models:
            for setting in config.settings:
                off = check_exactness(config, name, setting, folder)
                rules = config.live_rules if setting == "live" else config.rules
                if name != "demo":
                    rules = config.live_rules[:1] if setting == "live" else config.vocab_rules
                if setting == config.settings[0]:
                    rules = (*rules, PLAIN)
                if setting == "extra":
                    rules = (*rules, FORWARD)
                for rule in rules:
                    row = measure(config, name, setting, rule, folder) | {"neutral_rule_off": off}
                    gc.collect()
                    if config.memory and config.device == "cpu" and rule == rules[0]:
                        row["memory"] = measure_memory(config, name, setting, rule)
                    rows.append(row)
                    console.print(f"{name} {setting} {rule}: {row['wall']['overhead']:+.1%}", highlight=False)
                    record(config, rows)
    console.print(table_of(rows))


def record(config: OverheadConfig, rows: list[dict[str, Any]]) -> None:
    """Write what is measured so far."""
    if config.out is None:
        return
    content = {"configuration": replace(config, out=None), "environment": records.environment(), "measurements": rows}
    models = () if config.models == OverheadConfig.models else config.models
    records.write_json(config.out / f"{'_'.join(('trainer_overhead', *models, config.device))}.json", content)


if __name__ == "__main__":
    run_script(main, OverheadConfig)
