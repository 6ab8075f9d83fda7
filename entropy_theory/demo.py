"""The demo: theorem, toy policies, a whole vocabulary, a language model; one report at the end.

It sits beside the command line, above every room: it calls theory, dynamics, bridge and report, and none of them calls
it. Each part leaves a file and is not repeated when the file is there, so a demo that was killed resumes where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_theory import records
from entropy_theory.arms import ArmRun, folder_name, interval_data, read_runs, summarise_arms, train_arms
from entropy_theory.errors import LARGEST_INTEGER, at_least, invalid

if TYPE_CHECKING:
    from rich.console import Console

    from entropy_theory.intervals import Interval

    Progress = Callable[[int, int, str], None]
    Bar = Callable[[Console], AbstractContextManager[Progress]]

# The official thresholds (OFFICIAL) drop almost nothing in batches of 2,000 tokens; the demo asks them and says so.
ARMS = {
    "GRPO": "none",
    "Clip_B": "clip-b(mu=1)",
    "Clip_V": "clip-v(mu=2, max_fraction=None)",
    "Random mask": "random-mask(match='clip-b(mu=1)')",
}
OFFICIAL = ("clip-b", "clip-v")
SAVE_EVERY = 25
VOCABULARY = 151_936


@dataclass(frozen=True)
class DemoConfig:
    """Watch the whole chain: theorem, toy policies, a whole vocabulary, a language model whose entropy collapses.

    The theory is checked; banks of softmax policies show predicted against realised entropy, four interventions and
    the centring of the score; then a decoder of 85,000 parameters is trained from scratch on the sum task and by GRPO
    in four arms: no control, Clip_B, Clip_V and a random mask that drops as many tokens as Clip_B. The result is
    report.html. It shows entropy and the diversity of right answers, not accuracy. A killed demo resumes with the same
    command.

    Attributes:
        steps: GRPO steps of each arm.
        seeds: Seeds of GRPO's sampling; the warmed-up decoder is the same for all.
        processes: Arms trained at the same time, each on one thread.
        out: Folder for the report and everything behind it.
    """

    steps: int = 320
    seeds: tuple[int, ...] = (0, 1, 2)
    processes: int = 2
    out: Path = Path("runs/demo")

    def __post_init__(self) -> None:
        """Refuse an empty demo."""
        at_least(self, 1, "steps", "processes")
        if any(not 0 <= seed <= LARGEST_INTEGER for seed in self.seeds):
            raise invalid("seeds", f"integers from 0 to {LARGEST_INTEGER}", self.seeds)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise invalid("seeds", "one or more different integers", self.seeds)


def run_demo(config: DemoConfig, console: Console, bar: Bar) -> int:
    """Run the demo, or what is missing of it, and print as it goes.

    Args:
        config: Size and folder.
        console: Where to print.
        bar: Opens a progress bar.

    Returns:
        0, or 1 if a check of the theory failed.
    """
    # How many arms run at a time changes the time, not the numbers.
    with records.run_folder(config.out, config, ignore=("out", "processes")):
        return _run_demo(config, console, bar)


def _run_demo(config: DemoConfig, console: Console, bar: Bar) -> int:
    from entropy_theory.report import findings, tables
    from entropy_theory.report.pages import verification
    from entropy_theory.testbed import decoder
    from entropy_theory.theory.verification import verify

    start = time.monotonic()
    console.rule("1. The theory, checked")
    with bar(console) as progress:
        report = verify(budget="quick", progress=progress)
    report.save(config.out / "verification.json")
    verification.save_verification_page(report.to_dict(), config.out / "verification.html")
    console.print(tables.verification_summary(report.to_dict()))
    if not report.passed:
        return 1

    console.rule("2. Toy policies, and one check at the size of a real vocabulary")
    with bar(console) as progress:
        tabular = _once(config.out / "tabular.json", lambda: simulate_tabular(config.out / "toy", progress))
    for sentence in findings.predictions(tabular["predictions"]):
        console.print(sentence)
    console.print(findings.four_conditions(tabular["conditions"]))
    for sentence in findings.centring(tabular["centring"]):
        console.print(sentence)

    console.rule("3. A language model: warmed up on the sum task, then GRPO in four arms")
    with bar(console) as progress:
        decoder.cached_checkpoint(progress=progress)
    with bar(console) as progress:
        train_arms(_runs(config), config.steps, config.processes, progress)
    runs = read_runs(_runs(config))
    finals = summarise_arms(runs)
    bars = interval_data(finals)
    kept = [{k: v for k, v in run.items() if k not in ("lines", "seconds")} for run in runs]
    records.write_json(config.out / "result.json", {"arms": bars, "runs": kept})
    _write_report(config, report.to_dict(), tabular, runs, finals, bars)
    console.print(tables.arms_table(finals, ARMS))
    for sentence in findings.arms(finals):
        console.print(f"• {sentence}")
    console.print(f"\nreport: {config.out / 'report.html'}   ({time.monotonic() - start:.0f} s)")
    console.print("the same in a real pre-trained language model: make llm, or entropy-theory llm with the extra llm")
    return 0


def _once(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a part's result, or compute and write it."""
    if not path.exists():
        records.write_json(path, compute())
    return records.read_record(path, "predictions", "conditions", "centring", "scatter", "order")


# -- tabular policies --------------------------------------------------------------------------------------------------


def simulate_tabular(folder: Path, progress: Progress) -> dict[str, Any]:
    """Run the tabular part: a GRPO simulation, single steps at V = 151,936, four conditions, centring.

    Args:
        folder: Where the simulation keeps its arrays and checkpoints.
        progress: Called with (parts done, parts in all, words).

    Returns:
        ``predictions``, ``scatter``, ``conditions``, ``centring``, ``toy``, ``vocabulary``, as data.
    """
    from entropy_theory import dynamics

    parts = 4
    toy = dynamics.SimulationConfig(policies=400, vocab_size=100, steps=300, step_size=0.02, pairs=1500, out=folder)
    progress(0, parts, "GRPO on toy policies")
    simulated = dynamics.run(toy)
    progress(1, parts, f"single steps on policies of {VOCABULARY:,} tokens")
    # Standard deviation 4: entropies from 2 to 6 nats at this size, peaked but not deterministic.
    logits = dynamics.gaussian_logits(4, VOCABULARY, 4.0, seed=0)
    tokens, advantages = dynamics.sample_steps(logits, 16, seed=0)
    large = dynamics.predicted_against_realised(logits, tokens, advantages)
    progress(2, parts, "four conditions")
    conditions = dynamics.interventions(policies=500, steps=40, seeds=(0, 1, 2))
    progress(3, parts, "centring of the score")
    centred = dynamics.centering(dynamics.SimulationConfig(policies=400, vocab_size=100, steps=100, step_size=0.02))
    smallest = int(large.step_sizes.argmin())
    return {
        "predictions": {
            f"{toy.policies} toy policies of {toy.vocab_size} tokens along a GRPO run": {
                "slope": simulated.summary["slope"],
                "slope_error": simulated.summary["slope_error"],
                "step_size": toy.step_size,
            },
            f"Policies of {VOCABULARY:,} tokens, single GRPO steps": {
                "slope": float(large.slopes[smallest]),
                "slope_error": float(large.slope_errors[smallest]),
                "step_size": float(large.step_sizes[smallest]),
            },
        },
        "order": {"slope": large.order, "slope_error": large.order_error},
        "scatter": [
            {
                "title": f"toy, V = {toy.vocab_size}",
                "predicted": simulated.pairs["predicted"].tolist(),
                "realised": simulated.pairs["realised"].tolist(),
            },
            {
                "title": f"V = {VOCABULARY:,}",
                "predicted": large.predicted[smallest].ravel().tolist(),
                "realised": large.realised[smallest].ravel().tolist(),
            },
        ],
        "conditions": [
            {
                "name": f"{c.samples}, {c.keep.replace('>', ' > ').replace('<', ' < ')}",
                "samples": c.samples,
                "keep": c.keep,
                "predicted_sign": c.predicted_sign,
                "observed_sign": c.observed_sign,
                "change": c.mean_change,
                "standard_error": c.standard_error,
                "z": c.z,
                "entropy": c.curve.tolist(),
            }
            for c in conditions
        ],
        "centring": [
            {
                "sampler": c.sampler,
                "tokens": c.tokens_per_step * len(c.z),
                "discriminant": c.overall_discriminant,
                "centered": c.overall_centered,
                "standard_error": c.overall_error,
                "z": c.overall_z,
            }
            for c in centred
        ],
        "toy": {"policies": toy.policies, "vocab_size": toy.vocab_size, "steps": toy.steps},
        "vocabulary": {"vocab_size": VOCABULARY, "policies": logits.shape[0], "steps": int(tokens.numel())},
    }


# -- the arms ----------------------------------------------------------------------------------------------------------


def _runs(config: DemoConfig) -> list[ArmRun]:
    """List the training runs."""
    size = ("--steps", str(config.steps), "--save-every", str(SAVE_EVERY))
    observed = {"none": ("--observe", *OFFICIAL)}
    return [
        ArmRun(
            arm, seed, config.out / "arms" / folder_name(arm, seed), ("--rule", rule, *size, *observed.get(rule, ()))
        )
        for seed in config.seeds
        for arm, rule in ARMS.items()
    ]


# -- the report --------------------------------------------------------------------------------------------------------


def _write_report(
    config: DemoConfig,
    verification: Mapping[str, Any],
    tabular: Mapping[str, Any],
    runs: list[dict[str, Any]],
    finals: dict[str, dict[str, Interval]],
    bars: dict[str, dict[str, Any]],
) -> None:
    from entropy_theory.report import figures, findings
    from entropy_theory.report.pages import page
    from entropy_theory.training.config import TrainConfig
    from entropy_theory.training.metrics import LAST

    base = [run for run in runs if ARMS[run["arm"]] == "none"]
    lines = [line for run in base for line in run["lines"]]
    observed = {
        rule: sum(line[f"entropy_control/observed/{rule}/dropped_share"] for line in lines) / len(lines)
        for rule in OFFICIAL
    }
    words = {1: "rises", -1: "falls"}
    environment = records.read_json(config.out / "environment.json")
    pictures = {
        "training": page.picture(
            figures.training_curves,
            runs,
            bars,
            alt="Entropy, reward and distinct right answers against the GRPO step, by arm.",
        ),
        "prediction": page.picture(
            figures.prediction_scatter,
            tabular["scatter"],
            alt="Realised against predicted change of entropy, with the line y = x.",
        ),
        "conditions": page.picture(
            figures.four_conditions, tabular["conditions"], alt="Change of mean entropy under the four conditions."
        ),
        "centring": page.picture(figures.centring, base, alt="Batch means of S and of S_c against the GRPO step."),
    }
    page.write_page(
        config.out / "report.html",
        "demo.html",
        {
            "headline": findings.headline(finals),
            "command": f"entropy-theory demo --steps {config.steps} --seeds {' '.join(map(str, config.seeds))}",
            "pictures": pictures,
            "arms": [
                {
                    "name": arm,
                    "rule": rule,
                    "entropy": findings.span(finals[arm]["entropy"]),
                    "reward": findings.span(finals[arm]["reward"]),
                    "distinct_right": findings.span(finals[arm]["distinct_right"], ".1f"),
                    "dropped_share": f"{finals[arm]['dropped_share'].mean:.1%}",
                }
                for arm, rule in ARMS.items()
            ],
            "seeds": config.seeds,
            "steps": config.steps,
            "last": min(LAST, config.steps),
            "smoothed": min(figures.SMOOTHED_STEPS, config.steps),
            "generations": TrainConfig().generations,
            "findings": findings.arms(finals),
            "verification": verification,
            "checks": sum(len(result["checks"]) for result in verification["results"]),
            "toy": tabular["toy"],
            "vocabulary": tabular["vocabulary"],
            "prediction_findings": [*findings.predictions(tabular["predictions"]), findings.order(tabular["order"])],
            "conditions": [
                {
                    "samples": c["samples"],
                    "kept": c["name"].split(", ")[1],
                    "predicted": words[c["predicted_sign"]],
                    "change": f"{c['change']:+.4f} ± {c['standard_error']:.4f}",
                    "z": f"{c['z']:+.0f}",
                }
                for c in tabular["conditions"]
            ],
            "condition_steps": len(tabular["conditions"][0]["entropy"]) - 1,
            "conditions_finding": findings.four_conditions(tabular["conditions"]),
            "centring_findings": findings.centring(tabular["centring"]),
            "official": findings.official_thresholds(observed),
            "provenance": [
                ("commit", environment["commit"] or "outside a checkout"),
                ("versions", ", ".join(f"{k} {v}" for k, v in environment["packages"].items())),
                ("python", environment["python"]),
                ("device", f"{environment['device']}, {environment['cpus']} processors, {environment['system']}"),
                ("threads", "one per training run"),
                ("configuration", ", ".join(f"{k} {v}" for k, v in records.to_data(config).items() if k != "out")),
            ],
        },
    )
    figures.save(figures.training_curves(runs, bars), config.out / "training.png")
