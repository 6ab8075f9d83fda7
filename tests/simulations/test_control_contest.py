"""The contest of entropy control: its settings, measures and corrections on made-up runs, and its stages in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation_scripts import load

from entropy_theory.control import rule
from entropy_theory.control.registry import rule_names
from entropy_theory.errors import InputError
from entropy_theory.testbed import arithmetic

pytest.importorskip("trl", reason="needs the extra 'train'")
script, runs, tables = (load(name) for name in ("control_contest", "contest_runs", "contest_tables"))


def test_methods_are_tuned_with_as_many_runs() -> None:
    for task in script.START:
        numbers = {method: len(set(script.settings(method, task))) for method in script.METHODS}
        assert {n for method, n in numbers.items() if not method.startswith("none")} == {4}
        assert numbers["none"] == numbers["none, two updates"] == 1
        for method in script.METHODS:
            for setting in script.settings(method, task):
                assert rule(setting).name in rule_names()
                updates = script.METHODS[method][0]
                assert script.method_of({"task": task, "rule": setting, "num_iterations": updates}) == method


def test_held_out_prompts_are_never_drawn() -> None:
    for task in runs.TASKS.values():
        drawn = task.draw(0)
        assert len(drawn) == runs.ROWS
        assert not {*drawn} & {*task.held_out}
    expression = runs.TASKS["arithmetic"].held_out[0]
    assert arithmetic.is_right(expression, arithmetic.derive(expression, runs.np.random.default_rng(0)))


def entry(seed: int, rule_name: str, entropy: list[float], reward: list[float], **more: Any) -> dict[str, Any]:
    final = {"entropy": entropy[-1], "reward": reward[-1], "distinct_right": 10 * reward[-1], "dropped_share": 0.1}
    held_out = {"pass@1": 0.5, "pass@4": 0.6, "pass@16": 0.7 + seed / 100, "distinct_right": 3.0}
    task = {"task": "sum", "rule": rule_name, "seed": seed, "num_iterations": 1, "steps": 8} | more
    return {
        "task": task,
        "result": {"curves": {"entropy": entropy, "reward": reward}, "final": final, "held_out": held_out},
    }


def test_measures_at_equal_entropy_and_at_equal_reward() -> None:
    base = entry(0, "none", [1.0, 0.7, 0.5, 0.2], [0.0, 0.5, 0.8, 1.0])  # levels: entropy .6, reward .9
    own = tables.measures(base, base)
    assert own["reward_at_entropy"] == 0.5
    assert own["entropy_at_reward"] == 0.2
    assert own["updates_to_reward"] == 8.0
    assert (own["collapsed"], own["exploded"]) == (1.0, 0.0)
    kept = tables.measures(entry(0, "clip-b(mu=1)", [1.0, 0.8, 0.7, 0.65], [0.0, 0.4, 0.95, 0.85]), base)
    assert (kept["reward_at_entropy"], kept["entropy_at_reward"], kept["updates_to_reward"]) == (0.95, 0.7, 6.0)
    never = tables.measures(entry(0, "clip-b(mu=1)", [0.5, 0.5, 0.5, 1.3], [0.0, 0.1, 0.1, 0.2]), base)
    assert never["entropy_at_reward"] is None
    assert never["updates_to_reward"] is None
    assert never["exploded"] == 1.0
    fallen = tables.measures(base, entry(0, "none", [0.2, 0.5], [0.5, 0.1]))  # neither has a level
    assert not {"reward_at_entropy", "entropy_at_reward", "updates_to_reward"} & set(fallen)


def test_summary_pairs_by_seed_and_counts_runs_that_never_reach_a_level() -> None:
    floor = script.settings("entropy-floor", "sum")[0]
    entries = []
    for seed in range(3):
        entries.append(entry(seed, "none", [1.0, 0.6, 0.2], [0.0, 0.5 + seed / 10, 0.8 + seed / 10]))
        entries.append(entry(seed, floor, [1.0, 0.7, 0.6], [0.0, 0.5, 0.9 + seed / 10 - 0.01 * (seed == 1)]))
        entries.append(entry(seed, "clip-b(mu=1)", [1.0, 0.9, 0.9], [0.0, 0.1, 0.1]))
    summary = script.summarise_contest(entries)["sum"]
    rows = summary["methods"]
    assert rows["entropy-floor"]["reward_over_base"]["values"] == pytest.approx([0.1, 0.09, 0.1])
    assert rows["clip-b"]["entropy_at_reward"] == {"never": 3}
    assert "entropy_at_reward_over_base" not in rows["clip-b"]
    assert rows["clip-b"]["reward_of_floor_over_it"]["mean"] > 0.7
    assert summary["front"] == ["clip-b", "entropy-floor"]  # no control has less of both than entropy-floor


def test_runs_of_the_real_model_take_the_same_form() -> None:
    names = ("entropy", "reward", "distinct_right", "dropped_share")
    curves = {name: [float(i) for i in range(20)] for name in names}
    two = {name: [v for x in values for v in (x, None)] for name, values in curves.items()}  # later updates have none
    two["dropped_share"] = [v for x in range(20) for v in (0.0, 0.1 * x)]  # a ratio-based rule drops at the second
    for updates, recorded, final, dropped in ((1, curves, 14.5, 14.5), (2, two, 17.0, 0.85)):
        task = {"rule": "none", "seed": 0, "num_iterations": updates, "steps": 20 * updates}
        policy = {"held_out": {"pass@1": 0.2, "pass@8": 0.5, "distinct": 3.0}}
        made = runs.model_entry({"task": task, "result": {"curves": recorded, "policy": policy}})
        assert made["result"]["curves"]["reward"] == [2.0, 7.0, 12.0, 17.0]
        assert made["result"]["final"]["distinct_right"] == final  # of the last ten updates
        assert made["result"]["final"]["dropped_share"] == pytest.approx(dropped)
        assert script.method_of(made["task"]) == ("none" if updates == 1 else "none, two updates")
        falling = made["result"]["curves"] | {"entropy": [2.0, 1.5, 1.0, 0.5]}
        made["result"]["curves"] = falling
        measured = tables.measures(made, made)
        assert (measured["pass@8"], measured["held_out_distinct"]) == (0.5, 3.0)
        assert measured["updates_to_reward"] == 20.0 * updates


def test_points_of_a_curve_are_as_wide_as_each_other() -> None:
    for batches in (160, 320, 960):
        assert runs.smooth(list(range(batches))) == [5 * point + 2 for point in range(batches // 5)]


def test_survivors_are_not_compared() -> None:
    """A difference at a level needs every run of both; one without spread has no p."""
    row = {seed: {"x": value} for seed, value in enumerate([0.5, 0.6, None])}
    other = {seed: {"x": 0.1 * seed} for seed in range(3)}
    assert tables.paired(row, other, "x") is None
    assert tables.paired({s: {"x": v["x"] + 1.0} for s, v in other.items()}, other, "x")["p"] is None
    assert tables.paired(other, other, "x")["p"] == 1.0


def test_a_table_has_the_seeds_that_all_methods_have() -> None:
    entries = [entry(seed, "none", [1.0, 0.2], [0.0, 0.8]) for seed in (0, 1, 2)]
    entries += [entry(seed, "clip-b(mu=1)", [1.0, 0.4], [0.0, 0.7]) for seed in (2, 1)]
    assert script.summarise_contest(entries)["sum"]["seeds"] == [1, 2]
    with pytest.raises(InputError, match="none among the runs of sum"):
        script.summarise_contest(entries[3:])
    with pytest.raises(InputError, match="a seed of sum"):
        script.summarise_contest([*entries[:1], *entries[3:]])


def test_the_real_model_shares_its_runs() -> None:
    study = load("real_model")
    config = study.RealModelConfig(arms=len(study.ARMS) - study.LATER)
    arms = [task for task in study.tasks(config) if study.is_arm(task)]
    contest = script.model_runs()
    assert contest[: len(arms)] == arms
    assert [(run.rule, run.seed) for run in contest[len(arms) :]] == [
        (r, s) for r in script.MODEL_RULES for s in (0, 1, 2)
    ]
    assert len(set(contest)) == len(contest)


@pytest.mark.parametrize("option", [{"quick": True}, {"seeds": (0,)}, {"steps": 4}, {"methods": ("none",)}], ids=str)
def test_the_stage_of_the_real_model_has_one_size(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{next(iter(option))}: expected the default: the stage model has one size"):
        script.main(script.ContestConfig(stage="model", runs=tmp_path, **option))
    assert list(tmp_path.iterdir()) == []


def test_a_stage_takes_runs_from_the_record_of_another(tmp_path: Path) -> None:
    sweep, config, todo = load("sweep"), script.ContestConfig(stage="model", runs=tmp_path), script.model_runs()
    mine = sweep.file_of(todo[0], config)
    mine.write_text("{}")  # a run that is there stays
    sweep.restore("real_model", config, todo)
    assert mine.read_text() == "{}"
    held = sweep.read("real_model")["results"]
    there = [sweep.file_of(task, config) for task in todo[1:] if task.rule not in script.MODEL_RULES]
    assert sorted(tmp_path.iterdir()) == sorted([mine, *there])
    for path in there:
        written = json.loads(path.read_text())
        assert "packages" in written.pop("environment")
        assert written in [{k: v for k, v in entry.items() if k != "environment"} for entry in held]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_against_its_definition(p_values: list[float]) -> None:
    """A hypothesis is rejected at α exactly if all smaller p are, each against α over the number that is left."""
    corrected = tables.holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        order = sorted(range(len(p_values)), key=lambda place: p_values[place])
        rejected, going = set(), True
        for rank, place in enumerate(order):
            going = going and (len(p_values) - rank) * p_values[place] <= alpha
            rejected |= {place} if going else set()
        assert {place for place, p in enumerate(corrected) if p <= alpha} == rejected


@pytest.mark.slow
def test_the_quick_stages(tmp_path: Path) -> None:
    """Tuning, contest and long runs with their files; a stage without the tuning's record names it."""
    with pytest.raises(InputError, match="tuning first"):
        script.main(script.ContestConfig(quick=True, stage="contest", runs=tmp_path))
    with pytest.raises(InputError, match="a folder with results of the stage tuning"):
        script.main(script.ContestConfig(quick=True, runs=tmp_path, ready=True))
    small = {"quick": True, "runs": tmp_path, "seeds": (0,), "steps": 6}
    small["methods"] = ("none", "none, two updates", "clip-higher")
    tuned = script.main(script.ContestConfig(stage="tuning", **small))["summary"]
    assert set(tuned["chosen"]["sum"]) == {*small["methods"]}
    with pytest.raises(InputError, match="steps: expected as in"):
        script.main(script.ContestConfig(stage="contest", **small | {"steps": 8}))
    with pytest.raises(InputError, match="all settings tried, received without clip-b"):
        script.main(script.ContestConfig(stage="contest", **small | {"methods": (*small["methods"], "clip-b")}))
    with pytest.raises(InputError, match="also the runs without control"):
        script.main(script.ContestConfig(**small | {"methods": ("none", "clip-higher")}))
    contest = script.main(script.ContestConfig(stage="contest", **small))
    chosen = tuned["chosen"]["sum"]["clip-higher"]
    assert [r["task"]["rule"] for r in contest["results"]] == ["none", "none", chosen]
    assert contest["results"][2]["task"]["num_iterations"] == 2
    assert [len(r["result"]["curves"]["reward"]) for r in contest["results"]] == [2, 1, 1]  # of 6, 3, 3 batches
    long = script.main(script.ContestConfig(stage="long", **small))
    assert long["results"][0]["task"]["steps"] == 18


def test_the_loop_is_measured_from_the_first_batch_below_the_floor() -> None:
    study = load("floor_control")
    curves = {"entropy": [1.0, 0.8, 0.5, 0.7, 0.6], "reward": [0.0] * 5, "dropped_share": [0.0, 0.0, 0.1, 0.0, 0.1]}
    measured = study.loop_measures(curves, 0.65)
    assert measured["first_below"] == 2
    assert measured["offset"] == pytest.approx(-0.05)
    assert measured["shortfall"] == pytest.approx((0.15 + 0.05) / 3, rel=1e-3)  # four digits are kept
    assert study.loop_measures(curves, 0.4)["shortfall"] is None


def test_the_recorded_study_is_what_the_script_would_record(tmp_path: Path) -> None:
    study, sweep = load("floor_control"), load("sweep")
    config = study.FloorConfig(runs=tmp_path / "runs", out=tmp_path / "floor_control.json")
    sweep.restore("floor_control", config, study.tasks(config))
    assert all(sweep.file_of(task, config).exists() for task in study.tasks(config))  # nothing is left to run
    recorded = (sweep.RESULTS / "floor_control.json").read_text()
    study.main(config)
    assert config.out.read_text() == recorded


@pytest.mark.slow
def test_the_quick_study_of_the_loop(tmp_path: Path) -> None:
    study = load("floor_control")
    config = study.FloorConfig(quick=True, runs=tmp_path, steps=2)
    rows = study.main(config)["summary"]["settings"]
    held, fallen = rows["bank, step 0.5, gain 0.3"], rows["bank, step 0.5, gain 0"]
    assert held["final_entropy"]["mean"] > fallen["final_entropy"]["mean"]
    assert rows["decoder, rate 0.0018, entropy-floor(floor=0.65, gain=0.3)"]["never_below"] == 1
