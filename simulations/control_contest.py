"""A contest of entropy control: fifteen methods in one trainer, each tuned with as many runs, compared on fresh seeds.

    python simulations/control_contest.py --stage tuning --processes 2     # hours on two cores; resumes
    python simulations/control_contest.py --stage contest --processes 2    # with the settings that tuning chose
    python simulations/control_contest.py --stage long --processes 2       # three times as many updates, one seed
    python simulations/control_contest.py --stage model --processes 2      # SmolLM2; needs the extra llm, hours
    python simulations/control_contest.py --stage contest --task 0/4       # a share of a stage
    python simulations/control_contest.py --stage contest --ready          # a record of the tasks that are there
    python simulations/control_contest.py --quick --stage tuning           # the same code, a few updates of a few

Protocol, written before the results.

*Tasks.* The testbed's decoder (85,000 parameters) on two of them. The sum task, completions of at most 8 tokens;
targets divisible by 5 are held out of GRPO, not of the warm-up. Arithmetic in steps, expressions of 4 numbers up to 9,
completions of at most 28 tokens, from a decoder that is warmed up on demonstrations of which 30 % are wrong; 24
expressions are held out likewise. Per batch 16 prompts × 16 completions, T = 1, AdamW at the constant rate 6e-4, 320
updates. Ratio-based rules take two updates per batch, the others one; so there are two runs without control.

*Tuning.* Each method has four settings of its one or two parameters, `METHODS`; each is run once on seed 100. Targets
and floors are shares of the entropy that training starts from, `START`. The setting with the most distinct right
answers of a group of 16, mean over the last ten updates, is the method's: that number is what entropy is kept for, and
it is 0 for a policy that is diverse and wrong. A tie goes to the earlier setting.

*Contest.* Seeds 0 to 4 with each method's setting. Measured, with means over five neighbouring batches ("smoothed"):

- entropy, reward, distinct right answers and dropped share, means over the last ten updates;
- pass@1, pass@4, pass@16 and distinct right answers of 16 on the held-out prompts, after training;
- the updates until the smoothed reward first reaches a level, and the mean reward over the run (the area under it);
- *at equal entropy*: the largest smoothed reward of the updates whose smoothed entropy is at least a level; *at equal
  reward*: the largest smoothed entropy of the updates whose smoothed reward is at least a level. The levels are of the
  uncontrolled run of the same seed: entropy half of the way from its first value to its last, reward nine tenths of the
  way from its first value to its last. A run that never reaches the level has no number and is counted as "never". A
  seed whose uncontrolled run did not lose entropy, or gain reward, has no level;
- collapse: final entropy under a quarter of the first; explosion: final entropy above 1.25 times the first.

*Comparisons.* Paired by seed: each method with no control (of as many updates per batch), and entropy-floor with each
other method, for final reward, distinct right answers, held-out pass@16, reward at equal entropy and entropy at equal
reward. Two methods are compared at a level only if every run of both reaches it. Two-sided t-tests, corrected by Holm's
procedure over the methods, for each measure and task; intervals are uncorrected 95 % t-intervals. The Pareto front is
that of mean final entropy and mean final reward.

*Long runs.* 960 updates of the sum task, seed 200, with the settings of the contest: which method collapses or explodes
late. One run each, so no interval.

*Real model.* SmolLM2-135M-Instruct on additions, 40 updates, seeds 0 to 2: arms of `real_model.py`, without the two
that run last, and with the same settings two of the sum task's five best methods that it lacks, `MODEL_RULES`. The
third, entropy-flow, was to be a part and is not, for want of time; none of its runs was started. Runs in the record of
`real_model.py`, and in an incomplete one of this stage, are taken from there. There is no tuning: thresholds and
coefficients are those of `real_model.py`, targets .8 nats, between the entropy at the start (2.1) and that of a
collapsed run (.05), the floor's gain that of the arithmetic task. The stage has one size: it takes none of the options
for another. pass@8 takes the place of pass@16, held-out prompts have distinct answers, right or wrong, and
entropy-floor is compared with the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import contest_tables
import real_model
import real_model_runs
import sweep
from contest_runs import KS, ContestRun, model_entry, train
from contest_tables import compare

from entropy_theory.errors import invalid
from entropy_theory.program import run_script

START = {"sum": 1.0, "arithmetic": 0.25}
"""Mean entropy in nats of the first batch, by task, from a run of one update."""

METHODS: dict[str, tuple[int, tuple[str, ...]]] = {
    "none": (1, ("none",)),
    "none, two updates": (2, ("none",)),
    "entropy-floor": (
        1,
        (*(f"entropy-floor(floor={{{level}}}, gain=0.03)" for level in "abc"), "entropy-floor(floor={b}, gain=0)"),
    ),
    "entropy-budget": (
        1,
        (
            *(f"entropy-budget(target={{{level}}}, gain=0.1)" for level in "abc"),
            "entropy-budget(target={b}, gain=0.02)",
        ),
    ),
    "adaptive-entropy": (
        1,
        (
            *(f"adaptive-entropy(variant='trl', target={{{level}}})" for level in "abc"),
            "adaptive-entropy(variant='trl', target={b}, step=0.02)",
        ),
    ),
    "entropy-bonus": (1, tuple(f"entropy-bonus(coefficient={c:g})" for c in (0.02, 0.05, 0.1, 0.2))),
    "entropy-flow": (1, tuple(f"entropy-flow(strength={s:g})" for s in (0.1, 0.25, 0.5, 1.0))),
    "clip-b": (1, tuple(f"clip-b(mu={mu:g})" for mu in (0.5, 0.75, 1.0, 1.5))),
    "clip-v": (1, tuple(f"clip-v(mu={mu:g}, max_fraction=None)" for mu in (1.0, 1.5, 2.0, 3.0))),
    "80/20": (1, tuple(f"high-entropy(share={share:g})" for share in (0.1, 0.2, 0.4, 0.6))),
    "stare": (1, tuple(f"stare(up={up:g}, up_max={up:g}, target=None)" for up in (1.1, 1.5, 2.0, 4.0))),
    "w-reinforce": (1, tuple(f"w-reinforce(positive_weight={w:g})" for w in (0.1, 0.3, 0.6, 0.9))),
    "random mask": (1, tuple(f"random-mask(fraction={f:g})" for f in (0.01, 0.03, 0.1, 0.3))),
    "clip-higher": (2, tuple(f"clip-higher(epsilon_high={e:g})" for e in (0.28, 0.4, 0.6, 1.0))),
    "clip-cov": (2, tuple(f"clip-cov(fraction={f:g}, lower={low:g})" for f in (0.01, 0.05) for low in (0.2, 1.0))),
    "kl-cov": (2, tuple(f"kl-cov(fraction={f:g})" for f in (0.002, 0.01, 0.03, 0.1))),
    "steer": (2, tuple(f"steer(minimum={m:g})" for m in (0.8, 0.6, 0.3, 0.1))),
}
"""Updates per batch and settings of each method; {a}, {b}, {c} stand for `LEVELS` of the task's start."""
LEVELS = {"a": 0.5, "b": 0.65, "c": 0.8}
OURS = "entropy-floor"
MODEL_RULES = (
    "entropy-floor(floor=0.8, gain=0.03)",
    "adaptive-entropy(variant='trl', target=0.8)",
)
CRITERION = "distinct_right"


@dataclass(frozen=True)
class ContestConfig(sweep.SweepOptions):
    """Tune, compare and prolong methods of entropy control under the protocol of this script.

    Attributes:
        stage: "tuning", "contest" and "long" (with the recorded tuning's settings), or "model".
        tasks: Tasks of tuning and contest.
        methods: Methods; default: all.
        seeds: Seeds of the contest.
        tuning_seed: The one seed of tuning.
        steps: Updates.
        samples: Completions of each held-out prompt, at least 16.
        tiny: Start from decoders that are warmed up in seconds.
        ready: Run nothing; record the tasks whose files are there. In a record: whether some were missing.
    """

    stage: Literal["tuning", "contest", "long", "model"] = "tuning"
    tasks: tuple[str, ...] = ("sum", "arithmetic")
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seed: int = 100
    steps: int = 320
    samples: int = 64
    tiny: bool = False
    ready: bool = False


QUICK: dict[str, Any] = {
    "tasks": ("sum",),
    "methods": ("none", "entropy-floor", "clip-b"),
    "seeds": (0, 1),
    "steps": 3,
    "samples": 16,
    "tiny": True,
}
LONG_SEED, LONG_TASK, LONGER = 200, "sum", 3
ONE_TASK = {"long": LONG_TASK, "model": real_model_runs.TASK}


def settings(method: str, task: str) -> tuple[str, ...]:
    """The settings of a method that tuning tries on a task."""
    levels = {name: round(share * START[task], 2) for name, share in LEVELS.items()}
    return tuple(setting.format(**levels) for setting in METHODS[method][1])


def tuning_runs(config: ContestConfig) -> list[ContestRun]:
    """A run for each task, method and setting."""
    return [
        _run(config, task, method, setting, config.tuning_seed, config.steps)
        for task in config.tasks
        for method in config.methods
        for setting in settings(method, task)
    ]


def contest_runs(config: ContestConfig, chosen: Mapping[str, Mapping[str, str]]) -> list[ContestRun]:
    """A run for each task, seed and method, with its chosen setting: whole seeds first."""
    return [
        _run(config, task, method, chosen[task][method], seed, config.steps)
        for seed in config.seeds
        for task in config.tasks
        for method in config.methods
    ]


def long_runs(config: ContestConfig, chosen: Mapping[str, Mapping[str, str]]) -> list[ContestRun]:
    """A long run for each method."""
    steps = LONGER * config.steps
    return [_run(config, LONG_TASK, m, chosen[LONG_TASK][m], LONG_SEED, steps) for m in config.methods]


def model_runs() -> list[real_model_runs.ModelRun]:
    """The arms of `real_model.py` without its later ones, and `MODEL_RULES`."""
    config = real_model.RealModelConfig(arms=len(real_model.ARMS) - real_model.LATER)
    arms = [task for task in real_model.tasks(config) if real_model.is_arm(task)]
    plain = next(arm for arm in arms if arm.rule == real_model.CLIP_B)
    seeds = sorted({arm.seed for arm in arms})
    return arms + [dataclasses.replace(plain, rule=rule, seed=seed) for rule in MODEL_RULES for seed in seeds]


def _run(config: ContestConfig, task: str, method: str, setting: str, seed: int, steps: int) -> ContestRun:
    return ContestRun(task, setting, seed, steps, METHODS[method][0], config.samples, config.tiny)


def method_of(task: Mapping[str, Any]) -> str:
    """The method that a run's rule and updates per batch are a setting of; on the real model the rule itself."""
    if "method" in task:
        return str(task["method"])
    for method, (updates, _) in METHODS.items():
        if updates == task["num_iterations"] and task["rule"] in settings(method, task["task"]):
            return method
    raise invalid("runs", "runs of the settings of METHODS", f"{task['rule']} on {task['task']}")


def by_method(results: Sequence[Mapping[str, Any]], task: str) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of a task by method, in the order of `METHODS`."""
    grouped: dict[str, list[Mapping[str, Any]]] = {method: [] for method in METHODS}
    for entry in results:
        if entry["task"]["task"] == task:
            grouped.setdefault(method_of(entry["task"]), []).append(entry)
    return {method: entries for method, entries in grouped.items() if entries}


def summarise_tuning(results: list[dict[str, Any]]) -> dict[str, Any]:
    """For each task and method the setting with the most distinct right answers, and every setting's final numbers."""
    chosen: dict[str, dict[str, str]] = {}
    table: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(entry["task"]["task"] for entry in results):
        for method, entries in by_method(results, task).items():
            best = max(entries, key=lambda entry: entry["result"]["final"][CRITERION])
            chosen.setdefault(task, {})[method] = best["task"]["rule"]
            table.setdefault(task, {})[method] = {e["task"]["rule"]: e["result"]["final"] for e in entries}
    return {"chosen": chosen, "settings": table}


def summarise_contest(results: list[dict[str, Any]]) -> dict[str, Any]:
    """For each task: measures with intervals, comparisons with no control and of entropy-floor with the others."""
    tasks = dict.fromkeys(entry["task"]["task"] for entry in results)
    return compare({task: by_method(results, task) for task in tasks}, OURS)


def summarise_model(results: list[dict[str, Any]]) -> dict[str, Any]:
    """As `summarise_contest`, of the runs of the real model."""
    return summarise_contest([model_entry(entry) for entry in results])


def summarise_long(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Final numbers of the long runs, at their ends and at a third of them."""
    summary = {}
    for method, (entry,) in by_method(results, LONG_TASK).items():
        curves = entry["result"]["curves"]
        third = max(1, len(curves["entropy"]) // LONGER) - 1
        summary[method] = {
            "rule": entry["task"]["rule"],
            **{f"{name}_at_third": curves[name][third] for name in ("entropy", "reward", "distinct_right")},
            **{name: entry["result"]["final"][name] for name in ("entropy", "reward", "distinct_right")},
            "pass@16": entry["result"]["held_out"]["pass@16"],
        }
        summary[method]["entropy_kept"] = sweep.rounded(
            summary[method]["entropy"] / summary[method]["entropy_at_third"], 3
        )
    return {"methods": summary}


def main(config: ContestConfig) -> dict[str, Any] | None:
    """Run what is missing of a stage, record and print."""
    if config.stage == "model":
        fixed = ("quick", "tasks", "methods", "seeds", "steps", "samples", "tiny")
        if changed := [name for name in fixed if getattr(config, name) != getattr(ContestConfig(), name)]:
            raise invalid(", ".join(changed), "the default: the stage model has one size", "another")
    config = sweep.with_quick_settings(config, QUICK)
    if unknown := [name for name in config.methods if name not in METHODS]:
        raise invalid("methods", f"some of {', '.join(METHODS)}", ", ".join(unknown))
    if unknown := [name for name in config.tasks if name not in START]:
        raise invalid("tasks", f"some of {', '.join(START)}", ", ".join(unknown))
    bases = dict.fromkeys(("none", *(contest_tables.base_of(METHODS[name][0]) for name in config.methods)))
    if missing := [base for base in bases if base not in config.methods]:
        raise invalid(
            "methods", f"also the runs without control that they are compared with, {', '.join(missing)}", None
        )
    if config.samples < KS[-1]:
        raise invalid("samples", f"an integer >= {KS[-1]}, for pass@{KS[-1]}", config.samples)
    name = f"control_contest_{config.stage}"
    todo: Sequence[Any]
    work: Any = train
    if config.stage == "model":
        todo, work, summarise, show = model_runs(), real_model_runs.train, summarise_model, show_contest
        for recorded in ("real_model", name):
            if (sweep.RESULTS / f"{recorded}.json").exists():
                sweep.restore(recorded, config, todo)
    elif config.stage == "tuning":
        todo, summarise, show = tuning_runs(config), summarise_tuning, show_tuning
    else:
        chosen = _recorded_choice(config)
        todo = (contest_runs if config.stage == "contest" else long_runs)(config, chosen)
        summarise = summarise_contest if config.stage == "contest" else summarise_long
        show = show_contest if config.stage == "contest" else show_long
    if config.stage in ONE_TASK:  # the record says what was run
        seeds = tuple(sorted({run.seed for run in todo}))
        config = dataclasses.replace(config, tasks=(ONE_TASK[config.stage],), seeds=seeds, steps=todo[0].steps)
    incomplete = False
    if config.ready:
        there = [task for task in todo if sweep.file_of(task, config).exists()]
        print(f"{len(there)} of {len(todo)} tasks are there")
        if not there:
            raise invalid("runs", f"a folder with results of the stage {config.stage}", config.runs)
        todo, incomplete = there, len(there) < len(todo)
    record = sweep.run(name, dataclasses.replace(config, ready=incomplete), todo, work, summarise)
    if record is not None:
        show(record["summary"])
    return record


def _recorded_choice(config: ContestConfig) -> dict[str, dict[str, str]]:
    from entropy_theory import records

    recorded = config.runs / "control_contest_tuning-quick.json" if config.quick else None
    path = recorded or sweep.RESULTS / "control_contest_tuning.json"
    if not path.exists():
        raise invalid("stage", f"tuning first, whose record is {path}", config.stage)
    record = records.read_json(path)
    differs = [n for n in ("steps", "tiny") if record["configuration"][n] != getattr(config, n)]
    if differs:
        raise invalid(", ".join(differs), f"as in {path}", ", ".join(str(getattr(config, n)) for n in differs))
    tuned = record["summary"]["settings"]
    untried = [
        f"{setting} on {task}"
        for task in config.tasks
        for method in config.methods
        for setting in settings(method, task)
        if setting not in tuned.get(task, {}).get(method, {})
    ]
    if untried:
        raise invalid("methods, tasks", f"those of {path}, all settings tried", "without " + ", ".join(untried))
    chosen: dict[str, dict[str, str]] = record["summary"]["chosen"]
    return chosen


def show_tuning(summary: dict[str, Any]) -> None:
    """Print every setting's final numbers, the chosen ones marked."""
    for task, methods in summary["settings"].items():
        print(f"\n{task}: means over the last ten updates; * has the most distinct right answers")
        print(f"{'setting':56}{'entropy':>10}{'reward':>10}{'distinct':>10}{'dropped':>10}")
        for method, finals in methods.items():
            for setting, final in finals.items():
                mark = "*" if summary["chosen"][task][method] == setting else ""
                name = setting + (", two updates" if METHODS[method][0] == 2 else "") + mark
                columns = ("entropy", "reward", "distinct_right", "dropped_share")
                print(f"{name:56}" + "".join(f"{final.get(column, 0.0):10.3f}" for column in columns))


def show_contest(summary: dict[str, Any]) -> None:
    """Print the measures, the comparisons and the front of each task."""
    contest_tables.show(summary, OURS)


def show_long(summary: dict[str, Any]) -> None:
    """Print the long runs."""
    names = [f"{name}{part}" for part in ("_at_third", "") for name in ("entropy", "reward", "distinct_right")]
    print(f"\n{'setting':56}" + "".join(f"{name.replace('_', ' '):>24}" for name in (*names, "pass@16")))
    for row in summary["methods"].values():
        print(f"{row['rule']:56}" + "".join(f"{row[name]:24.3f}" for name in (*names, "pass@16")))


if __name__ == "__main__":
    run_script(main, ContestConfig)
