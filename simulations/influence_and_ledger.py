"""Shared parameters, measured: which tokens move mean entropy, and how a run's fall splits into its two halves.

    python simulations/influence_and_ledger.py --processes 2    # hours, most of it on the real model; resumes
    python simulations/influence_and_ledger.py --models decoder # the decoder alone, half an hour
    python simulations/influence_and_ledger.py --quick          # a minute: the decoder, a few steps

Protocol, written before the results.

*Models and runs.* The decoder of 85,000 parameters on the sum task: 320 updates, 16 × 16 completions, AdamW at 6e-4.
SmolLM2-135M-Instruct (extra llm) on "addition": 40 updates, 4 × 8 completions of at most 16 tokens, AdamW at 2e-5.
No control. Seeds 0, 1, 2. Each model is trained on-policy (one update per batch) and, the decoder alone, with four
updates per batch, where TRL clips the ratio.

*Influence.* On the batches of some steps, before their update: the decoder at the start (steps 0, 1), in the middle
(100, 101) and collapsed (318, 319); SmolLM2 at the start (0, 1) and collapsed (38, 39). For every token D, exact
(`token_influence`): over the same contexts; over crossed halves; and over the same with the preconditioner of AdamW's
state (from step 1 on). Compared with the tabular −S_c/n: Pearson, Spearman, the share of equal signs, and how many of
the 3 % of tokens with the largest |·| are the same; plain, and both weighted by g. By kind of token: its share of the
tokens, of Σ |g D|, and Pearson and equal signs within it. How many tokens carry half of Σ |g D|. Of the tokens that
Clip_B would drop (μ = 1 on the decoder, .9 on SmolLM2): the share with g D < 0, and what dropping them takes from the
predicted change of mean entropy, by D and by S_c. Expected: correlations of .2 to .5 and equal signs on 70 to 80 % of
the tokens at the start; nothing was expected of the later stages but that it be lower.

*Ledger.* For every update the change of mean entropy on its own contexts and the remainder, state shift and sampling of
prompts (`train --ledger`). Over a run: the sum of each, the share of the fall that is fixed-context, the size of the
remainders against their standard error, and the sign of their sum. No expectation was written down.

Intervals are 95 % t-intervals over seeds of means over a stage's batches.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sweep
from grpo_runs import warmed_up
from real_model_runs import KINDS, kind_of

from entropy_theory.program import run_script

ModelName = Literal["decoder", "smollm2"]
STAGES = {
    "decoder": {"start": (0, 1), "middle": (100, 101), "collapsed": (318, 319)},
    "smollm2": {"start": (0, 1), "collapsed": (38, 39)},
}
VARIANTS = ("same", "crossed", "adamw")
CLIP_B = {"decoder": "clip-b(mu=1)", "smollm2": "clip-b(mu=0.9)"}
LEDGER = ("entropy", "fixed", "remainder", "remainder_se")
STRONGEST = 0.03
POINTS = 300  # tokens of a batch that the record keeps for a figure


@dataclass(frozen=True)
class InfluenceConfig(sweep.SweepOptions):
    """Measure influence and the ledger under the protocol of this script.

    Attributes:
        models: decoder and smollm2.
        seeds: A run of each for each.
        steps: Updates of a run of the decoder; stages beyond are left out.
        real_steps: Updates of a run of SmolLM2.
        tiny: Start from a decoder that is warmed up in a second.
    """

    models: tuple[ModelName, ...] = ("decoder", "smollm2")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 320
    real_steps: int = 40
    tiny: bool = False


QUICK = {"models": ("decoder",), "seeds": (0, 1), "steps": 9, "tiny": True}


@dataclass(frozen=True)
class InfluenceRun:
    """One run without control, with a ledger, looked at in some of its steps."""

    model: ModelName
    seed: int
    steps: int
    at: tuple[int, ...]
    num_iterations: int = 1
    tiny: bool = False


def tasks(config: InfluenceConfig) -> list[InfluenceRun]:
    """The decoder's runs, on-policy and with four updates per batch; then those of SmolLM2."""
    made = []
    for model in config.models:
        steps = config.steps if model == "decoder" else config.real_steps
        at = tuple(step for stage in STAGES[model].values() for step in stage if step < steps)
        for updates in (1, 4) if model == "decoder" else (1,):
            looked_at = at if updates == 1 else ()
            made += [InfluenceRun(model, seed, steps, looked_at, updates, config.tiny) for seed in config.seeds]
    return made


def work(task: InfluenceRun) -> dict[str, Any]:
    """Train and look; ``probes`` by step and variant, ``ledger`` and ``reward`` by step."""
    from entropy_theory.bridge.trl import EntropyControlledGRPOConfig, EntropyControlledGRPOTrainer
    from entropy_theory.training.inputs import load_task, load_tokenizer, model_folder
    from entropy_theory.training.run import load_libraries, silence, trainer_arguments

    load_libraries()
    probes: dict[str, Any] = {}

    class Probed(EntropyControlledGRPOTrainer):
        """Looks at the batches of the chosen steps before their update."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
            if self.state.global_step in task.at:
                probes[str(self.state.global_step)] = probe(self, output, CLIP_B[task.model])
            return output

    with tempfile.TemporaryDirectory() as folder:
        config = configuration(task, Path(folder))
        tokenizer = load_tokenizer(config)
        data, reward = load_task(config, tokenizer)
        trainer = Probed(
            model=model_folder(config),
            reward_funcs=reward,
            args=EntropyControlledGRPOConfig(**trainer_arguments(config, 1) | {"save_strategy": "no"}),
            train_dataset=data,
            processing_class=tokenizer,
        )
        silence(trainer)
        trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    entries = [line for line in lines if "entropy_control/ledger/fixed" in line]
    ledger = {name: [line[f"entropy_control/ledger/{name}"] for line in entries] for name in LEDGER}
    curves = {"entropy": [line["entropy_control/entropy"] for line in lines if "entropy_control/entropy" in line]}
    curves["reward"] = [line["reward"] for line in lines]
    return {"probes": probes, "ledger": sweep.rounded(ledger, 7), "curves": sweep.rounded(curves)}


def configuration(task: InfluenceRun, out: Path) -> Any:
    """The run as `entropy-theory train` would do it."""
    from entropy_theory.training.config import TrainConfig

    if task.model == "decoder":
        return TrainConfig(
            model=str(warmed_up(task.tiny)),
            steps=task.steps,
            num_iterations=task.num_iterations,
            prompts_per_step=4 if task.tiny else 16,
            generations=8 if task.tiny else 16,
            max_completion_length=8,
            learning_rate=6e-4,
            ledger=True,
            seed=task.seed,
            out=out,
        )
    return TrainConfig(
        model="smollm2",
        task="addition",
        steps=task.steps,
        prompts_per_step=4,
        generations=8,
        max_completion_length=16,
        learning_rate=2e-5,
        bf16=True,
        ledger=True,
        seed=task.seed,
        out=out,
    )


def probe(trainer: Any, output: dict[str, Any], clip_b: str) -> dict[str, Any]:
    """Measure the influence of a batch's tokens on the model as it is; a summary for each variant."""
    from entropy_theory.bridge.trl.step_batch import step_batch_of
    from entropy_theory.control import TokenBatch
    from entropy_theory.control import rule as build_rule
    from entropy_theory.influence import preconditioner, token_influence

    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = step_batch_of(output, trainer.num_generations, float(trainer.temperature))
    valid, tokenizer = batch.valid, trainer.processing_class
    tokens = batch.completion_ids[valid].tolist()
    kind_of_token = {token: kind_of(tokenizer, token) for token in set(tokens)}
    kinds = np.array([kind_of_token[token] for token in tokens])
    measured: dict[str, Any] = {}
    for variant in VARIANTS:
        settings: dict[str, Any] = {"over": "crossed"} if variant == "crossed" else {}
        if variant == "adamw":
            if not trainer.state.global_step:
                continue  # the optimizer has no state before its first step
            settings = {"preconditioner": preconditioner(trainer.optimizer, dict(model.named_parameters()))}
        influence = token_influence(model, batch, **settings)
        columns = (influence.values, influence.tabular, influence.coefficients, influence.entropy)
        D, x, g, H = (values[valid].double().numpy() for values in columns)
        entry: dict[str, Any] = {"total": influence.total, "check": influence.check, "tokens": len(D)}
        entry |= {"plain": agreement(x, D), "weighted": agreement(g * x, g * D, g != 0)}
        entry["half"] = tokens_with_half(g * D)
        entry["kinds"] = {name: of_kind(kinds == number, x, D, g) for number, name in enumerate(KINDS)}
        if variant == "same":
            seen = TokenBatch(
                log_probs=influence.log_probs,
                entropy=influence.entropy,
                advantages=influence.coefficients,
                completion_mask=valid,
                centered_discriminant=influence.centered_discriminant,
            )
            kept = build_rule(clip_b).apply(seen).keep_mask
            assert kept is not None  # of Clip_B
            entry["clip_b"] = dropped(~kept[valid].numpy(), x, D, g)
            every = -(-len(D) // POINTS)
            entry["points"] = sweep.rounded(np.stack([x, D, g, H, kinds])[:, ::every].tolist(), 4)
        measured[variant] = sweep.rounded(entry)
    return measured


def agreement(x: np.ndarray, D: np.ndarray, where: np.ndarray | None = None) -> dict[str, float | None]:
    """Pearson, Spearman, equal signs and common strongest tokens of one batch."""
    from entropy_theory.audit.tokens import TOKEN_ESTIMATES, token_agreement
    from entropy_theory.intervals import Resampling

    once = np.zeros(len(x), dtype=np.int64)
    estimates = token_agreement(x, D, once, Resampling.draw([once], 1, 0), where)
    return {name: e["value"] if (e := estimates[name]) else None for name in TOKEN_ESTIMATES}


def tokens_with_half(effects: np.ndarray) -> int:
    """The fewest tokens that carry half of Σ |effect|; 0 if there is none."""
    sizes = np.sort(np.abs(effects))[::-1].cumsum()
    return int(np.searchsorted(sizes, sizes[-1] / 2) + 1) if sizes[-1] else 0


def of_kind(mine: np.ndarray, x: np.ndarray, D: np.ndarray, g: np.ndarray) -> dict[str, Any]:
    """What the tokens of one kind are in a batch."""
    whole = float(np.abs(g * D).sum())
    share = float(np.abs(g * D)[mine].sum()) / whole if whole else 0.0
    few = int(mine.sum()) < 10  # a correlation of a handful of tokens says nothing
    measured = dict.fromkeys(("pearson", "sign_agreement")) if few else agreement(x[mine], D[mine])
    return {
        "share_of_tokens": float(mine.mean()),
        "share_of_effects": share,
        "pearson": measured["pearson"],
        "sign_agreement": measured["sign_agreement"],
    }


def dropped(out: np.ndarray, x: np.ndarray, D: np.ndarray, g: np.ndarray) -> dict[str, Any]:
    """What dropping tokens takes from the predicted change of mean entropy; sums are over the batch's Σ |·|."""
    measured: dict[str, Any] = {"count": int(out.sum())}
    acting = out & (g != 0)
    for name, effects in (("influence", g * D), ("tabular", g * x)):
        whole = float(np.abs(effects).sum())
        measured[name] = {
            "share_falling": float((effects[acting] < 0).mean()) if acting.any() else None,
            "taken": float(effects[out].sum()) / whole if whole else None,
            "batch": float(effects.sum()) / whole if whole else None,
        }
    return measured


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """For each model: influence by stage and variant, kinds, Clip_B; and the ledgers."""
    summary: dict[str, Any] = {}
    for model in dict.fromkeys(r["task"]["model"] for r in results):
        mine = [r for r in results if r["task"]["model"] == model]
        looked_at = [r["result"]["probes"] for r in mine if r["result"]["probes"]]
        stages = {
            name: {variant: stage_summary(looked_at, [str(step) for step in at], variant) for variant in VARIANTS}
            for name, at in STAGES[model].items()
        }
        by_updates: dict[str, Any] = {}
        for updates in sorted({r["task"]["num_iterations"] for r in mine}):
            by_updates[str(updates)] = ledger_summary(
                [r["result"] for r in mine if r["task"]["num_iterations"] == updates]
            )
        summary[model] = {"stages": stages, "ledgers": by_updates}
    return summary


def stage_summary(probes: list[dict[str, Any]], at: list[str], variant: str) -> dict[str, Any] | None:
    """Intervals over seeds of the means over a stage's batches, for every number of a probe."""
    by_seed = [[probe[step][variant] for step in at if variant in probe.get(step, {})] for probe in probes]
    by_seed = [entries for entries in by_seed if entries]
    if not by_seed:
        return None
    names = [path for path in paths(by_seed[0][0]) if path[0] not in ("points", "tokens")]
    rows: dict[str, Any] = {}
    for path in names:
        means = [mean_of([value_at(entry, path) for entry in entries]) for entries in by_seed]
        known = [value for value in means if value is not None]
        if known:
            rows["/".join(path)] = sweep.rounded(sweep.interval(known))
    return rows


def paths(entry: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The places of the numbers of a nested dictionary."""
    if not isinstance(entry, dict):
        return [before]
    return [path for name, value in entry.items() for path in paths(value, (*before, name))]


def value_at(entry: Any, path: tuple[str, ...]) -> float | None:
    """The number at a place; None where there is none."""
    for name in path:
        entry = entry.get(name) if isinstance(entry, dict) else None
    return entry


def mean_of(values: list[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def ledger_summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: start, end, sums of both halves, their share of the fall, and the remainders beside their error."""
    rows: dict[str, list[float]] = {}
    for run in runs:
        ledger = run["ledger"]
        fixed, remainder = np.array(ledger["fixed"]), np.array(ledger["remainder"])
        errors = np.array(ledger["remainder_se"])
        start = ledger["entropy"][0] - fixed[0] - remainder[0]
        row = {
            "start": start,
            "end": ledger["entropy"][-1],
            "fixed": fixed.sum(),
            "remainder": remainder.sum(),
            "fixed_share_of_change": fixed.sum() / (fixed.sum() + remainder.sum()),
            "closing_error": abs(start + fixed.sum() + remainder.sum() - ledger["entropy"][-1]),
            "remainder_over_error": float(np.sqrt(np.mean((remainder / errors) ** 2))),
            "signs_differ": float(np.mean(fixed * remainder < 0)),
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(float(value))
    return {name: sweep.rounded(sweep.interval(values)) for name, values in rows.items()}


def main(config: InfluenceConfig) -> dict[str, Any] | None:
    """Run, record and print."""
    config = sweep.with_quick_settings(config, QUICK)
    record = sweep.run("influence_and_ledger", config, tasks(config), work, summarise)
    if record is not None:
        show(record["summary"])
    return record


def show(summary: dict[str, Any]) -> None:
    """Print the tables."""
    for model, parts in summary.items():
        show_influence(model, parts["stages"])
        for stage, variants in parts["stages"].items():
            if variants["same"]:
                show_tokens(stage, variants["same"])
        for updates, rows in parts["ledgers"].items():
            print(f"\n{model}: ledger, {updates} update(s) per batch")
            for name, measured in rows.items():
                print(f"  {name.replace('_', ' '):24}{sweep.shown(measured, 4)}")


def show_influence(model: str, stages: dict[str, Any]) -> None:
    """Print how −S_c/n and D agree, by stage and variant."""
    print(f"\n{model}: −S_c/n against D, over tokens; means over batches and seeds ± 95 % t-intervals")
    names = ("pearson", "spearman", "sign_agreement", "strongest_shared")
    print(f"{'':34}" + "".join(f"{name.replace('_', ' '):>18}" for name in names) + f"{'half by':>16}")
    for stage, variants in stages.items():
        for variant, rows in variants.items():
            for kind in ("plain", "weighted") if rows else ():
                row = [sweep.shown(rows[f"{kind}/{n}"]) if f"{kind}/{n}" in rows else "" for n in names]
                row.append(sweep.shown(rows["half"], 0) if kind == "plain" else "")
                print(f"{f'{stage}, {variant}, {kind}':34}" + "".join(f"{cell:>18}" for cell in row))


def show_tokens(stage: str, rows: dict[str, Any]) -> None:
    """Print the kinds of tokens, and what Clip_B would drop."""
    print(f"\n{stage}: by kind of token: share of tokens, of Σ |g D|, Pearson, equal signs")
    for kind in KINDS:
        columns = ("share_of_tokens", "share_of_effects", "pearson", "sign_agreement")
        cells = [rows.get(f"kinds/{kind}/{column}") for column in columns]
        if cells[0] and cells[0]["mean"]:
            print(f"  {kind:18}" + "".join(f"{sweep.shown(cell) if cell else '':>18}" for cell in cells))
    words = {
        "count": "tokens",
        "influence/share_falling": "with g D < 0",
        "influence/taken": "their Σ g D over Σ |g D|",
        "influence/batch": "of the batch",
        "tabular/taken": "the same by S_c",
        "tabular/batch": "of the batch",
    }
    known = [
        f"{text} {sweep.shown(rows[f'clip_b/{name}'])}" for name, text in words.items() if f"clip_b/{name}" in rows
    ]
    print("  dropped by Clip_B: " + "; ".join(known))


if __name__ == "__main__":
    run_script(main, InfluenceConfig)
