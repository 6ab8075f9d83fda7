"""The demo's sequel: entropy collapse and its control in a real pre-trained language model, with one report.

It sits beside the demo, above every room. Each part leaves files and is not repeated when they are there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_theory import records
from entropy_theory.arms import ArmRun, Job, folder_name, interval_data, read_runs, summarise_arms, train_arms
from entropy_theory.errors import at_least, finite_number

if TYPE_CHECKING:
    from rich.console import Console

    from entropy_theory.intervals import Interval

    Progress = Callable[[int, int, str], None]
    Bar = Callable[[Console], AbstractContextManager[Progress]]

# μ = 0.9 drops some per cent of the tokens in batches of this size, where the official 2.5 drops none.
ARMS = {"GRPO": "none", "Clip_B": "clip-b(mu=0.9)", "Entropy bonus": "entropy-bonus(coefficient=0.02)"}
SAVE_EVERY = 10
AUDIT_COPIES = 16  # of the weights in memory: 14 were seen on 32 completions of 16 tokens
ARM_COPIES = 13  # two arms were seen to need 14 GB
LAST = 10
"""Steps whose means say how an arm ended."""


@dataclass(frozen=True)
class LlmConfig:
    """Watch entropy collapse in a real pre-trained language model, and what prevents it.

    SmolLM2-135M-Instruct, from an installed package (extra llm), is trained by GRPO in three arms: no control, Clip_B
    and an entropy bonus. Predicted stand beside realised changes of entropy, by training step and, where there are 8
    GiB of free memory for an audit, by position; and a page shows which tokens of the model's own completions move
    entropy. The result is report.html. Two arms at a time need 14 GB of memory, and 10 GB of disk until they are done.
    A killed run resumes with the same command.

    Attributes:
        model: As for train.
        task: As for train.
        steps: GRPO steps of each arm.
        prompts_per_step: Prompts in one generation batch.
        generations: Completions per prompt.
        max_completion_length: Tokens per completion.
        learning_rate: Constant rate of AdamW.
        bf16: Matrix products in bfloat16, a third faster on processors that have them and far slower on others;
            default: where the processor has them.
        seed: Seed of prompts and sampling.
        processes: Arms trained at the same time, each on one thread.
        out: Folder for the report and everything behind it.
    """

    model: str = "smollm2"
    task: str = "addition"
    steps: int = 40
    prompts_per_step: int = 4
    generations: int = 8
    max_completion_length: int = 16
    learning_rate: float = 2e-5
    bf16: bool | None = None
    seed: int = 0
    processes: int = 2
    out: Path = Path("runs/llm")

    def __post_init__(self) -> None:
        """Refuse an empty run."""
        at_least(self, 1, "steps", "prompts_per_step", "max_completion_length", "processes")
        at_least(self, 2, "generations")
        at_least(self, 0, "seed")
        finite_number(self, "learning_rate")


def run_llm(config: LlmConfig, console: Console, bar: Bar) -> int:
    """Run all parts, or what is missing of them, and print as it goes.

    Args:
        config: Size and folder.
        console: Where to print.
        bar: Opens a progress bar.

    Returns:
        0.
    """
    if config.bf16 is None:
        config = replace(config, bf16=processor_multiplies_bf16())
    # How many arms run at a time changes the time, not the numbers.
    with records.run_folder(config.out, config, ignore=("out", "processes")):
        return _run_llm(config, console, bar)


def processor_multiplies_bf16(processor: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has instructions for products in bfloat16; False where its flags are not listed."""
    try:
        flags = processor.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _run_llm(config: LlmConfig, console: Console, bar: Bar) -> int:
    from entropy_theory.report import findings, tables
    from entropy_theory.testbed.pretrained import resolve_model

    start = time.monotonic()
    console.rule(f"1. {config.model}: GRPO on the task {config.task} in {len(ARMS)} arms")
    with bar(console) as progress:
        model = resolve_model(config.model, progress)
    _check_inputs(config, model)
    with bar(console) as progress:
        beside = (_audit_job(config),) if _audit_fits_beside_an_arm(config) else ()
        train_arms(_runs(config), config.steps, config.processes, progress, beside)
    for run in _runs(config):  # each is three times the model's size, and only an arm that is not done resumes
        for checkpoint in (run.folder / "trainer").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    runs = [run | {"final": _last_means(run["lines"])} for run in read_runs(_runs(config))]
    finals = summarise_arms(runs)
    records.write_json(config.out / "result.json", {"arms": interval_data(finals)})
    console.print(tables.arms_table(finals, ARMS, answers=("distinct", "distinct answers")))
    for sentence in findings.arms(finals, answers="distinct"):
        console.print(f"• {sentence}")

    console.rule("2. Predicted against realised")
    slopes, realised = _step_changes(runs[0]["lines"])
    predicted = [findings.steps(slopes, realised)]
    with bar(console) as progress:
        audited, why_not = _audit(config, progress)
    predicted += [why_not] if audited is None else findings.audit(audited)
    for sentence in predicted:
        console.print(f"• {sentence}", markup=False)

    console.rule("3. Which tokens of its own completions move entropy")
    with bar(console) as progress:
        verdict = _inspect(config, runs[0], progress)
    console.print(verdict)
    _write_report(config, runs, finals, audited, predicted, verdict)
    console.print(f"\nreport: {config.out / 'report.html'}   ({time.monotonic() - start:.0f} s)")
    return 0


def _check_inputs(config: LlmConfig, model: str) -> None:
    """Raise an error over a model or task that cannot be used, before any arm starts."""
    from entropy_theory.training.config import TrainConfig
    from entropy_theory.training.inputs import check_chat, load_task, load_tokenizer
    from entropy_theory.training.run import load_libraries

    load_libraries()
    run = TrainConfig(
        model=model,
        task=config.task,
        prompts_per_step=config.prompts_per_step,
        generations=config.generations,
        seed=config.seed,
    )
    tokenizer = load_tokenizer(run)
    prompts, _ = load_task(run, tokenizer)
    check_chat(prompts, tokenizer, run)


def _runs(config: LlmConfig) -> list[ArmRun]:
    options = {
        "--model": config.model,
        "--task": config.task,
        "--steps": config.steps,
        "--prompts-per-step": config.prompts_per_step,
        "--generations": config.generations,
        "--max-completion-length": config.max_completion_length,
        "--learning-rate": config.learning_rate,
        "--save-every": SAVE_EVERY,
    }
    words = [str(word) for option in options.items() for word in option] + ["--bf16"] * bool(config.bf16)
    return [
        ArmRun(
            arm,
            config.seed,
            config.out / "arms" / folder_name(arm, config.seed),
            (*words, "--rule", rule, *(["--log-completions", "--realised-every", "1"] if rule == "none" else [])),
        )
        for arm, rule in ARMS.items()
    ]


def _last_means(lines: list[dict[str, Any]]) -> dict[str, float]:
    names = {
        "entropy": "entropy",
        "reward": "reward",
        "distinct": "distinct",
        "dropped_share": "entropy_control/dropped_share",
    }
    last = {
        name: [line[logged] for line in lines[-LAST:] if line.get(logged) is not None] for name, logged in names.items()
    }
    return {name: sum(values) / len(values) for name, values in last.items() if values}


def _step_changes(lines: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Predicted slope and realised change of the steps that had an advantage."""
    names = ("entropy_control/slope", "entropy_control/realised_change")
    logged = [line for line in lines if _had_advantage(line) and all(line.get(name) is not None for name in names)]
    return [line[names[0]] for line in logged], [line[names[1]] for line in logged]


def _had_advantage(line: dict[str, Any]) -> bool:
    """Whether the completions of a prompt of the step's batch were rewarded differently."""
    # TRL's reward_std is of the whole batch, so it is positive when only the prompts differ.
    equal_share = line.get("frac_reward_zero_std")
    return equal_share is not None and equal_share < 1


def _audit_fits_beside_an_arm(config: LlmConfig) -> bool:
    """Whether the audit can be made while the last arm trains."""
    weights, free = _weights_and_free_memory(config)
    return config.processes > 1 and weights > 0 and (free or 0) >= (AUDIT_COPIES + ARM_COPIES) * weights


def _weights_and_free_memory(config: LlmConfig) -> tuple[int, int | None]:
    """Bytes of the weights (0 while a hub's model has not been trained yet), and of the memory that is free."""
    import torch

    from entropy_theory.testbed.pretrained import resolve_model
    from entropy_theory.training.memory import available_bytes

    model = Path(resolve_model(config.model))
    folder = model if model.is_dir() else _runs(config)[0].folder / "model"
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return weights, available_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _audit_options(config: LlmConfig) -> dict[str, Any]:
    return {
        "arms": ("adamw",),
        "at": (2,),  # the first step of AdamW is far larger than its later ones
        "seeds": (config.seed,),
        "model": config.model,
        "task": config.task,
        "prompts_per_step": config.prompts_per_step,
        "generations": config.generations,
        "max_completion_length": config.max_completion_length,
        "learning_rate": config.learning_rate,
        "positions": 16,
        "precision": "float32",
        "resamples": 200,
    }


def _audit_job(config: LlmConfig) -> Job:
    """The audit as a command of its own."""
    words = ["audit"]
    for name, value in _audit_options(config).items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return Job("audit of a step", config.out / "audit", tuple(words))


def _audit(config: LlmConfig, progress: Progress) -> tuple[dict[str, Any] | None, str]:
    """Audit a step, or read the audit made before; where the memory is missing, None and a sentence that says so."""
    from entropy_theory.audit.config import AuditConfig
    from entropy_theory.audit.run import audit

    weights, free = _weights_and_free_memory(config)
    finished = (config.out / "audit" / "result.json").exists()
    if not finished and free is not None and free < AUDIT_COPIES * weights:
        return None, (
            f"The audit of single positions was left out: it needs about {AUDIT_COPIES * weights / 2**30:.0f} GiB of "
            f"memory, and {free / 2**30:.0f} GiB were free. The same command makes it up where there are more."
        )
    return audit(AuditConfig(**_audit_options(config), out=config.out / "audit"), progress), ""


def _inspect(config: LlmConfig, run: dict[str, Any], progress: Progress) -> str:
    """Write the page of the batch of `_inspected_step`, and return its verdict."""
    from entropy_theory.inspection.inspect import InspectConfig, inspect
    from entropy_theory.inspection.page_data import page_data
    from entropy_theory.report.pages.inspect import save_inspect_page, verdict

    inspection = inspect(
        InspectConfig(
            rollouts=_runs(config)[0].folder,
            model=config.model,
            step=_inspected_step(run["lines"]),
            rule=(*ARMS.values(), "clip-v(mu=2, max_fraction=None)", "high-entropy"),
            out=config.out / "inspect.html",
        ),
        progress,
    )
    save_inspect_page(page_data(inspection), config.out / "inspect.html")
    return verdict(inspection.lens)


def _inspected_step(lines: list[dict[str, Any]]) -> int:
    """The first step that had an advantage, whose batch hardly any update precedes; without one, the first step."""
    return next((line["step"] for line in lines if _had_advantage(line)), lines[0]["step"])


def _write_report(
    config: LlmConfig,
    runs: list[dict[str, Any]],
    finals: dict[str, dict[str, Interval]],
    audited: dict[str, Any] | None,
    predicted: list[str],
    verdict: str,
) -> None:
    from entropy_theory.report import figures, findings
    from entropy_theory.report.figures.audit import audit_figure
    from entropy_theory.report.pages import page

    environment = records.read_json(config.out / "environment.json")
    curves = page.picture(
        figures.training_curves,
        runs,
        answers=("distinct", "distinct answers"),
        alt="Entropy, reward and distinct answers against the GRPO step, by arm.",
    )
    had_advantage = any(_had_advantage(line) for line in runs[0]["lines"])
    slopes, realised = _step_changes(runs[0]["lines"])
    # The slope has no step size in logit space: the least-squares multiple stands for it.
    size = sum(a * b for a, b in zip(slopes, realised, strict=True)) / (sum(a * a for a in slopes) or 1.0)
    panel = {"title": "GRPO arm, by step", "predicted": [size * a for a in slopes], "realised": realised}
    by_step = (
        page.picture(
            figures.prediction_scatter,
            [panel],
            alt="Realised change of entropy of each step against its predicted slope.",
        )
        if slopes
        else ""
    )
    by_position = (
        ""
        if audited is None
        else page.picture(
            audit_figure,
            audited,
            alt="Realised against predicted change of entropy by position, and what it is made of.",
        )
    )
    settings = {k: v for k, v in records.to_data(config).items() if k not in ("out", "processes")}
    page.write_page(
        config.out / "report.html",
        "llm.html",
        {
            "headline": findings.headline(finals, model=f"{config.model}, a pre-trained language model")
            if had_advantage
            else findings.NO_ADVANTAGE,
            "had_advantage": had_advantage,
            "model": config.model,
            "task": config.task,
            "steps": config.steps,
            "seed": config.seed,
            "prompts": config.prompts_per_step,
            "generations": config.generations,
            "last": min(LAST, config.steps),
            "smoothed": min(figures.SMOOTHED_STEPS, config.steps),
            "pictures": {"training": curves, "steps": by_step, "audit": by_position},
            "arms": [
                {
                    "name": arm,
                    "rule": rule,
                    "entropy": findings.span(finals[arm]["entropy"]),
                    "reward": findings.span(finals[arm]["reward"]),
                    "distinct": findings.span(finals[arm]["distinct"], ".1f") if "distinct" in finals[arm] else "",
                    "dropped_share": f"{finals[arm]['dropped_share'].mean:.1%}",
                }
                for arm, rule in ARMS.items()
            ],
            "findings": findings.arms(finals, answers="distinct"),
            "predicted": predicted,
            "verdict": verdict,
            "provenance": [
                ("commit", environment["commit"] or "outside a checkout"),
                ("versions", ", ".join(f"{k} {v}" for k, v in environment["packages"].items())),
                ("device", f"{environment['device']}, {environment['cpus']} processors, {environment['system']}"),
                ("configuration", ", ".join(f"{k} {v}" for k, v in settings.items())),
            ],
        },
    )
    figures.save(figures.training_curves(runs, answers=("distinct", "distinct answers")), config.out / "training.png")
