"""Audit a model: how well does the tabular theory predict what its optimizer steps do to its entropy?

GRPO runs are trained as `train` trains them, one for each arm and seed. At chosen steps the batch is held fixed, and
the step that the optimizer really makes is measured on it (`audit_step`); what all steps of an arm say together is
summarised with intervals (`audit_statistics`). A measured step is a file; an audit that was killed goes on behind the
last one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from entropy_theory import records
from entropy_theory.audit import step as audit_step
from entropy_theory.audit.run import PATIENCE, read_step, run_arm
from entropy_theory.audit.statistics import Array, Resampling, agreement, shares
from entropy_theory.control import rule as build_rule
from entropy_theory.errors import invalid
from entropy_theory.training import run as training

Arm = Literal["sgd", "adamw", "sgd-output"]
Progress = Callable[[int, int, str], None]

PREDICTORS = ("token", "context", "parameters")
SCATTER = 200  # positions of each arm that the record keeps for the figure


@dataclass(frozen=True)
class AuditConfig:
    """Measure how well the tabular theory predicts the entropy of your model, whose positions share their parameters.

    The theory gives every position logits of its own; in a model, a step on one token moves all others. The audit
    trains by GRPO, and at the steps of --at it holds the batch fixed and compares, position by position, the change of
    entropy that the optimizer's step makes with three predictions: "token", the theory's −η A S_c of the position's own
    token; "context", the same for all tokens sampled at equal prefixes; "parameters", the first order in the weights,
    exact but for curvature. On --positions positions the step is also taken apart into the position's own token, its
    context, sharing with other contexts, preconditioning and momentum. Intervals resample steps and prompt groups.

      entropy-theory audit                                    # the demo's decoder, SGD and AdamW, some minutes
      entropy-theory audit --arms adamw --model my-model --dataset prompts.jsonl --reward my_module:reward

    Attributes:
        arms: sgd; adamw; sgd-output, SGD on the output matrix alone, whose first order has a closed form.
        at: Optimizer steps to measure, or the next one that has a gradient; the runs end with the last. AdamW's first
            step is far larger than its later ones.
        seeds: Seeds of sampling and data order; each is a run of each arm.
        model: Folder or hub name of a causal language model; default: the small decoder of the demo.
        dataset: File, folder or hub name with a "prompt" column; default: the sum task.
        dataset_split: Split of the dataset.
        reward: Reward function in TRL's form as module:function; needed with --dataset.
        rule: Entropy-control rule that is fixed once per generation batch.
        prompts_per_step: Prompts in one generation batch.
        generations: Completions per prompt.
        max_completion_length: Tokens per completion; default as for train.
        learning_rate: Rate of AdamW; default as for train.
        sgd_learning_rate: Rate of SGD. At ten times the default the first order no longer holds for the demo's decoder.
        temperature: Sampling temperature; all entropies are those of the tempered policy.
        positions: Positions of each measured step at which it is taken apart.
        precision: Arithmetic of the measurement; the training is in float32. The noise floor is reported.
        resamples: Bootstrap resamples.
        out: Folder for audit.json, audit.png and the measured steps.
    """

    arms: tuple[Arm, ...] = get_args(Arm)
    at: tuple[int, ...] = (5, 15, 30, 60)
    seeds: tuple[int, ...] = (0, 1, 2)
    model: str | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    reward: str | None = None
    rule: str = "none"
    prompts_per_step: int = 16
    generations: int = 16
    max_completion_length: int | None = None
    learning_rate: float | None = None
    sgd_learning_rate: float = 1e-3
    temperature: float = 1.0
    positions: int = 256
    precision: Literal["float64", "float32"] = "float64"
    resamples: int = 1000
    out: Path = Path("runs/audit")

    def __post_init__(self) -> None:
        """Refuse values that no audit can use; those of the runs are checked by TrainConfig."""
        for name, kind in (("arms", "arms"), ("at", "steps >= 1"), ("seeds", "integers")):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise invalid(name, f"one or more different {kind}", values)
        if min(self.at) < 1:
            raise invalid("at", "steps >= 1", self.at)
        for name in ("positions", "resamples"):
            if getattr(self, name) < 1:
                raise invalid(name, "an integer >= 1", getattr(self, name))
        if not (self.sgd_learning_rate > 0 and math.isfinite(self.sgd_learning_rate)):
            raise invalid("sgd_learning_rate", "a finite number > 0", self.sgd_learning_rate)
        rule = build_rule(self.rule)
        if rule.phase != "batch" or rule.entropy_term:
            raise invalid(
                "rule", "a rule that acts through advantages fixed once per generation batch", repr(self.rule)
            )
        self.run("adamw", 0)

    def run(self, arm: Arm, seed: int) -> training.TrainConfig:
        """The configuration of one run."""
        return training.TrainConfig(
            model=self.model,
            dataset=self.dataset,
            dataset_split=self.dataset_split,
            reward=self.reward,
            rule=self.rule,
            steps=max(self.at) + PATIENCE,
            prompts_per_step=self.prompts_per_step,
            generations=self.generations,
            max_completion_length=self.max_completion_length,
            learning_rate=self.learning_rate if arm == "adamw" else self.sgd_learning_rate,
            temperature=self.temperature,
            seed=seed,
            out=self.out / "runs" / f"{arm}-{seed}",
        )

    def file(self, arm: Arm, seed: int, step: int) -> Path:
        """Where a measured step is kept."""
        return self.out / "steps" / f"{arm}-{seed}-{step}.safetensors"


def audit(config: AuditConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run what is missing of an audit and return its summary, which is also in ``result.json``.

    Args:
        config: The audit.
        progress: Called with (training steps done, steps in all, a word).

    Returns:
        As `summarise`, with ``configuration`` and ``environment``.

    Raises:
        ValueError: The model, dataset, reward or rule cannot be used, another audit is in the folder, or torchrun
            started several processes.
        ImportError: The extra ``train`` is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise invalid("audit", "one process (a step is measured on the whole batch)", os.environ["WORLD_SIZE"])
    with records.exclusive(config.out):
        if records.open_run(config.out, config):
            found: dict[str, Any] = records.read_json(config.out / "result.json")
            return found
        runs, last = [(arm, seed) for arm in config.arms for seed in config.seeds], max(config.at)
        for number, (arm, seed) in enumerate(runs):

            def moved(done: int, words: str, before: int = number * last) -> None:
                if progress is not None:
                    progress(before + done, len(runs) * last, words)

            run_arm(config, arm, seed, moved)
        result = {"configuration": records.to_data(config), "environment": records.environment()} | summarise(config)
        records.write_json(config.out / "result.json", result)
        return result


# -- the summary -------------------------------------------------------------------------------------------------------


def summarise(config: AuditConfig) -> dict[str, Any]:
    """Summarise the measured steps of an audit.

    Returns:
        ``steps``: a row for each arm, seed and step with its scalars and mean changes. ``arms``: for each arm
        ``predictors``, the `agreement` of each of PREDICTORS and of the second orders ``token_2`` and ``context_2`` at
        the fitted step size; ``quadrants`` and ``deciles``, the same by quadrant of (A, S_c) and by decile of entropy;
        ``pieces``, their `shares` of the first order; ``own_effect``, the agreement of ``token`` and ``context`` with
        the very part of the first order that they speak of, not with the realised change; ``scatter``, some positions.
    """
    rows, arms = [], {}
    for arm in config.arms:
        steps = [read_step(config.file(arm, seed, at)) for seed in config.seeds for at in config.at]
        rows += [row for seed in config.seeds for row in step_rows(config, arm, seed)]
        arms[arm] = _arm([arrays for arrays, _ in steps], max(s["noise_floor"] for _, s in steps), config)
    return {"steps": rows, "arms": arms}


def step_rows(config: AuditConfig, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """Say what each measured step of a run says by itself.

    Returns:
        A row per step: its scalars, means over positions, signs and R² of the predictions, and two checks relative to
        the largest change: ``sum_error``, the pieces by reverse mode against the whole by forward mode, and
        ``output_error``, the closed form of the output matrix against autograd.
    """
    return [_row(arm, seed, *read_step(config.file(arm, seed, step))) for step in config.at]


def _row(arm: str, seed: int, arrays: dict[str, Array], scalars: dict[str, float]) -> dict[str, Any]:
    means = {f"mean_{name}": arrays[key].mean() for name, key in _keys().items()}
    alone, floor = Resampling.draw([arrays["group"]], 1, seed=0), scalars["noise_floor"]
    for name, key in _keys().items():
        found = agreement(arrays[key], arrays["realised"], alone, floor=floor)
        means |= {f"{kind}_{name}": e["value"] for kind in ("sign_agreement", "r2_fitted") if (e := found[kind])}
    whole, chosen = sum(arrays[name] for name in audit_step.PIECES), arrays["chosen"]
    size = np.abs(arrays["parameters"][chosen]).max()
    checks = {"sum_error": np.abs(whole - arrays["parameters"][chosen]).max() / size}
    if "output_closed" in arrays:
        gap = np.abs(arrays["output"] - arrays["output_closed"]).max()
        checks["output_error"] = gap / np.abs(arrays["output"]).max()
    numbers = {"mean_entropy": arrays["entropy"].mean(), "mean_realised": arrays["realised"].mean()} | means | checks
    row = {name: float(f"{float(value):.6g}") for name, value in (scalars | numbers).items()}
    return {"arm": arm, "seed": seed, "positions": len(arrays["entropy"]), **row, "step": int(scalars["step"])}


def _keys() -> dict[str, str]:
    return {"token": "token_1", "context": "context_1", "parameters": "parameters"}


def _arm(steps: list[dict[str, Array]], floor: float, config: AuditConfig) -> dict[str, Any]:
    def joined(name: str) -> Array:
        return np.concatenate([arrays[name] for arrays in steps])

    resampling = Resampling.draw([arrays["group"] for arrays in steps], config.resamples, seed=0)
    realised, entropy, quadrant = joined("realised"), joined("entropy"), joined("quadrant")
    predictions = {name: joined(key) for name, key in _keys().items()}

    def compared(where: Any = None) -> dict[str, Any]:
        return {n: agreement(x, realised, resampling, floor=floor, where=where) for n, x in predictions.items()}

    overall = compared()
    for name in ("token", "context"):
        found = overall[name]["slope"]
        if found is not None:  # the second order at the step size that the first one was fitted to
            x = found["value"] * predictions[name] + found["value"] ** 2 * joined(f"{name}_2")
            overall[f"{name}_2"] = agreement(x, realised, resampling, floor=floor)
    edges = np.quantile(entropy, np.linspace(0, 1, 11))
    tenth = np.clip(np.searchsorted(edges, entropy, side="right") - 1, 0, 9)
    deciles = [
        {"low": float(f"{edges[i]:.4g}"), "high": float(f"{edges[i + 1]:.4g}"), **compared(tenth == i)}
        for i in range(10)
    ]
    taken = Resampling.draw([arrays["group"][arrays["chosen"]] for arrays in steps], config.resamples, seed=0)
    pieces = {name: joined(name) for name in audit_step.PIECES}
    spoken_of = {"token": pieces["own"], "context": pieces["own"] + pieces["context"]}
    own_effect = {}
    for name, part in spoken_of.items():
        x = np.concatenate([arrays[f"{name}_1"][arrays["chosen"]] for arrays in steps])
        own_effect[name] = agreement(x, part, taken)
    some = np.random.default_rng(0).permutation(len(realised))[:SCATTER]
    columns = {"realised": realised, "entropy": entropy, **predictions}
    return {
        "positions": len(realised),
        "groups": resampling.weights.shape[1],
        "rms_realised": float(f"{np.sqrt(np.mean(realised**2)):.6g}"),
        "predictors": overall,
        "quadrants": {f"q{q}": compared(quadrant == q) for q in (1, 2, 3, 4)} | {"none": compared(quadrant == 0)},
        "deciles": deciles,
        "pieces": shares(pieces, taken),
        "own_effect": own_effect,
        "scatter": {name: [float(f"{v:.4g}") for v in column[some]] for name, column in columns.items()},
    }
