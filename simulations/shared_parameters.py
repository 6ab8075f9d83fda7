"""How much of a real model's entropy change does the tabular theory explain? The audit of the small decoder, recorded.

    python simulations/shared_parameters.py             # the recorded run, some minutes
    python simulations/shared_parameters.py --quick     # under a minute
    python simulations/shared_parameters.py --task 0/3  # a share; all shares in one `runs` folder, then once without

The same as `entropy-theory audit`, split into a task for each optimizer and seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sweep
from grpo_runs import warmed_up

from entropy_theory.audit.config import Arm, AuditConfig
from entropy_theory.program import run_script


@dataclass(frozen=True)
class SharedParametersConfig(sweep.SweepOptions):
    """Audit the small decoder.

    Attributes:
        arms: Optimizers, as of `entropy-theory audit`.
        seeds: A run of each arm for each.
        at: Steps to measure.
        positions: Positions of each step at which it is taken apart.
        prompts: Prompts in a generation batch.
        generations: Completions per prompt.
        tiny: Audit a decoder that is warmed up in a second.
        picture: Where the figure goes; default: beside the record.
    """

    arms: tuple[Arm, ...] = ("sgd", "adamw", "sgd-output")
    seeds: tuple[int, ...] = (0, 1, 2)
    at: tuple[int, ...] = (5, 15, 30, 60)
    positions: int = 256
    prompts: int = 16
    generations: int = 16
    tiny: bool = False
    picture: Path | None = None


QUICK = {"seeds": (0, 1), "at": (2, 4), "positions": 32, "prompts": 4, "generations": 8, "tiny": True}


@dataclass(frozen=True)
class AuditRun:
    """One arm with one seed; the attributes are those of the configuration."""

    arm: Arm
    seed: int
    at: tuple[int, ...]
    positions: int
    prompts: int
    generations: int
    tiny: bool
    folder: Path


def audit_config(run: AuditRun, config: SharedParametersConfig | None = None) -> AuditConfig:
    """The audit that a run belongs to."""
    return AuditConfig(
        arms=(run.arm,) if config is None else config.arms,
        seeds=(run.seed,) if config is None else config.seeds,
        at=run.at,
        model=str(warmed_up(run.tiny)),
        max_completion_length=8,
        learning_rate=6e-4,
        prompts_per_step=run.prompts,
        generations=run.generations,
        positions=run.positions,
        precision="float64",
        held_out=8 if run.tiny else 128,
        out=run.folder,
    )


def work(run: AuditRun) -> dict[str, Any]:
    """Train one arm and measure its steps."""
    from entropy_theory.audit.run import run_arm
    from entropy_theory.audit.summary import step_rows

    audit = audit_config(run)
    run_arm(audit, run.arm, run.seed)
    return {"steps": step_rows(audit, run.arm, run.seed)}


def main(config: SharedParametersConfig) -> dict[str, Any] | None:
    """Audit, record, print and draw."""
    from rich.console import Console

    from entropy_theory.audit.summary import summarise
    from entropy_theory.report import figures, findings
    from entropy_theory.report.figures.audit import audit_figure
    from entropy_theory.report.figures.audit_tokens import audit_tokens_figure
    from entropy_theory.report.tables import audit_means_table, audit_table, audit_tokens_table

    config = sweep.with_quick_settings(config, QUICK)
    shape = (config.at, config.positions, config.prompts, config.generations, config.tiny)
    folder = config.runs / ("audit-tiny" if config.tiny else "audit")
    tasks = [AuditRun(arm, seed, *shape, folder) for arm in config.arms for seed in config.seeds]

    def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
        measured = summarise(audit_config(tasks[0], config))
        sentences = {"findings": findings.audit(measured), "token_findings": findings.audit_tokens(measured)}
        return {**sentences, "arms": measured["arms"]}

    record = sweep.run("shared_parameters", config, tasks, work, summary)
    if record is None:
        return None
    result = {
        "arms": record["summary"]["arms"],
        "steps": [s for entry in record["results"] for s in entry["result"]["steps"]],
    }
    console = Console()
    for table in (audit_table, audit_tokens_table, audit_means_table):
        console.print(table(result))
    for sentence in (*record["summary"]["findings"], *record["summary"]["token_findings"]):
        console.print(f"• {sentence}")
    out = config.picture or (
        config.out or (config.runs if config.quick else sweep.RESULTS) / "shared_parameters"
    ).with_suffix(".png")
    figures.save(audit_figure(result), out)
    of_tokens = out.with_stem(f"{out.stem}_tokens")
    figures.save(audit_tokens_figure(result), of_tokens)
    console.print(f"figures: {out}, {of_tokens}")
    return record


if __name__ == "__main__":
    run_script(main, SharedParametersConfig)
