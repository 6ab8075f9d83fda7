"""The tables of docs/findings.md on entropy control are those of the records that they quote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pytest
from quoted_records import ROOT, figures, record, whole_record

FINDINGS = ROOT / "docs" / "findings.md"


def missing(words: Iterable[str], heading: str) -> list[str]:
    """Of the words those that the section has not."""
    section = FINDINGS.read_text().split(f" {heading}\n", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]
    text = " ".join(section.split())
    return [some for some in words if some not in text]


def short(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(before: str) -> list[list[str]]:
    """The rows, as cells, of the first table after the words."""
    lines = FINDINGS.read_text().split(before, 1)[1].splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("| ---"))
    rows = [line.strip("| ").split(" | ") for line in lines[first + 1 :]]
    return rows[: next(place for place, line in enumerate(lines[first + 1 :]) if not line.startswith("|"))]


def setting(method: str, row: dict) -> str:
    return f"`{row['rule']}`" + (", two updates" if row["updates"] == 2 else "")


@pytest.mark.parametrize(("task", "heading"), [("sum", "*Sum task.*"), ("arithmetic", "*Arithmetic in steps.*")])
def test_the_contest(task: str, heading: str) -> None:
    methods = record("control_contest_contest")[task]["methods"]

    def lost(row: dict) -> str:
        ends = {name: round(sum(row[name]["values"])) for name in ("collapsed", "exploded")}
        return ", ".join(f"{runs} {name}" for name, runs in ends.items() if runs)

    expected = [
        [
            setting(method, row),
            figures(row["entropy"]),
            figures(row["reward"]),
            figures(row["distinct_right"], 1),
            figures(row["pass@16"]),
            figures(row["reward_at_entropy"]),
            f"{row['dropped_share']['mean']:.1%}".replace("%", " %"),
            lost(row),
        ]
        for method, row in methods.items()
    ]
    shown = [[*row, ""][:8] for row in table(heading)]
    assert len(expected) == 17
    assert [[cell.strip(" |") for cell in row] for row in shown] == expected


def test_what_the_contest_says_of_its_tuning() -> None:
    tuned = record("control_contest_tuning")
    several = ("entropy-floor", "entropy-budget", "adaptive-entropy", "clip-cov")  # two parameters
    one = [
        list(settings).index(tuned["chosen"][task][method])
        for task, methods in tuned["settings"].items()
        for method, settings in methods.items()
        if method not in several and len(settings) == 4
    ]
    ends = sum(place in (0, 3) for place in one)
    levels = {method: [tuned["chosen"][task][method] for task in ("sum", "arithmetic")] for method in several[:2]}
    assert levels["entropy-floor"][1].startswith("entropy-floor(floor=0.2,")
    assert [rule.split(",")[0] for rule in levels["entropy-budget"]] == [
        "entropy-budget(target=0.5",
        "entropy-budget(target=0.2",
    ]
    assert len(one) == 2 * 11
    expected = [f"Eleven methods were tuned in one parameter, on both tasks: {ends} of these {len(one)} searches"]
    assert missing(expected, "A contest of rules") == []


def best_at_the_level(entry: dict, base: dict) -> tuple[int, int]:
    """Points whose entropy is at least half of the way down the uncontrolled run's, and the update of the best."""
    curves, (first, *_, last) = entry["result"]["curves"], base["result"]["curves"]["entropy"]
    high = [place for place, entropy in enumerate(curves["entropy"]) if entropy >= last + (first - last) / 2]
    best = max(high, key=lambda place: curves["reward"][place])
    return len(high), (best + 1) * entry["task"]["steps"] // len(curves["reward"])


def test_the_contest_says_how_many_points_are_at_equal_entropy() -> None:
    runs = whole_record("control_contest_contest")["results"]
    by_setting = {
        (task["task"], task["rule"], task["num_iterations"], task["seed"]): entry
        for entry in runs
        for task in (entry["task"],)
    }

    def spans(task: str, method: str) -> tuple[str, str]:
        row = record("control_contest_contest")[task]["methods"][method]
        counts, updates = zip(
            *(
                best_at_the_level(by_setting[task, row["rule"], 1, seed], by_setting[task, "none", 1, seed])
                for seed in range(5)
            ),
            strict=True,
        )
        return f"{min(counts)} to {max(counts)}", f"{min(updates)} to {max(updates)}"

    base, floor = spans("sum", "none"), spans("sum", "entropy-floor")
    more = ("clip-b", "entropy-flow", "clip-v", "adaptive-entropy", "entropy-floor", "stare")
    counts = [int(n) for method in more for n in spans("sum", method)[0].split(" to ")]
    rows = record("control_contest_contest")["sum"]["methods"]
    gains = [rows[method]["reward_at_entropy_over_base"] for method in more]
    assert all(gain["p_holm"] <= 0.05 for gain in gains)
    means = [short(gain["mean"]) for gain in gains]
    ahead = rows["entropy-flow"]["entropy_at_reward_over_base"]
    compared = sum("entropy_at_reward_over_base" in row for row in rows.values())
    assert compared == 3
    expected = [
        f"Without control {base[0]} of 64 points are at the level, and the best is at updates {base[1]}",
        f"with entropy-floor {floor[0]} points are, and the best is at updates {floor[1]}",
        f"In arithmetic {spans('arithmetic', 'none')[0]} of 64 points",
        f"have {min(means)} to {max(means)} more reward",
        f"{min(counts)} to {max(counts)} of their 64 points",
        f"+{short(ahead['mean'])} ± {short(ahead['half_width'])} nats (p = {short(ahead['p_holm'], 3)}, corrected over "
        "the three methods",
    ]
    assert missing(expected, "A contest of rules") == []


def test_the_contest_on_the_real_model() -> None:
    methods = record("control_contest_model")["addition"]["methods"]
    expected = [
        [
            setting(method, row),
            figures(row["entropy"]),
            ", ".join(f"{value:.2f}" for value in row["entropy"]["values"]),
            figures(row["reward"]),
            figures(row["distinct_right"], 1),
            figures(row["pass@1"]),
            figures(row["pass@8"]),
            f"{row['dropped_share']['mean']:.1%}".replace("%", " %"),
        ]
        for method, row in methods.items()
    ]
    assert table("### On a real language model") == expected
    assert len(expected) == 10
    assert {len(row["entropy"]["values"]) for row in methods.values()} == {3}


def test_the_long_runs() -> None:
    rows = record("control_contest_long")["methods"]
    held_out = {
        (entry["task"]["rule"], entry["task"]["num_iterations"]): entry["result"]["held_out"]["distinct_right"]
        for entry in whole_record("control_contest_long")["results"]
    }
    expected = [
        [
            f"`{row['rule']}`" + (", two updates" if method in two_updates() else ""),
            *(
                f"{row[f'{name}_at_third']:.{digits}f}, {row[name]:.{digits}f}"
                for name, digits in (("entropy", 2), ("reward", 2), ("distinct_right", 1))
            ),
            f"{held_out[row['rule'], 2 if method in two_updates() else 1]:.1f}, {row['pass@16']:.2f}",
        ]
        for method, row in rows.items()
    ]
    assert table("First number after 320 updates") == expected
    assert len(expected) == 17


def test_the_ends_of_the_long_runs() -> None:
    rows = record("control_contest_long")["methods"]
    curves = {
        entry["task"]["rule"]: entry["result"]["curves"]
        for entry in whole_record("control_contest_long")["results"]
        if entry["task"]["num_iterations"] == 1
    }
    distinct, reward = (
        {method: curves[rows[method]["rule"]][name] for method in (*HELD, "none")}
        for name in ("distinct_right", "reward")
    )
    points = 80 // 5
    ends = {m: (f"{mean(distinct[m][-points:]):.1f}", short(mean(reward[m][-points:]))) for m in distinct}
    last = [(row["distinct_right"], row["reward"]) for row in map(rows.get, HELD)]
    late = range(320 // 5, 960 // 5)  # a point is the mean of five updates

    def lowest(method: str, points: Iterable[int] = late) -> int:
        return min(points, key=lambda point: distinct[method][point])

    below = {m: [point for point in late if distinct[m][point] < 8] for m in HELD}
    assert [method for method in HELD if below[method]] == ["entropy-budget", "entropy-floor"]
    floor, early, again = (
        lowest("entropy-floor"),
        lowest("entropy-budget"),
        lowest("entropy-budget", range(850 // 5, 960 // 5)),
    )
    dips = [reward["entropy-floor"][floor], reward["entropy-budget"][early], reward["entropy-budget"][again]]
    slump = min(late, key=lambda point: reward["none"][point])
    slope = mean(curves[rows["entropy-floor"]["rule"]]["slope"][480 // 5 :])
    expected = [
        f"they have {min(last)[0]:.1f} to {max(last)[0]:.1f} distinct right answers at a reward of "
        f"{short(min(r for _, r in last))} to {short(max(r for _, r in last))} "
        f"(no control: {rows['none']['distinct_right']:.1f} at {short(rows['none']['reward'])})",
        "adaptive-entropy has {} distinct right answers at a reward of {}".format(*ends["adaptive-entropy"]),
        "Clip_B {} at {}, Clip_V {} at {}".format(*ends["clip-b"], *ends["clip-v"]),
        "entropy-budget {} at {} and entropy-floor {} at {}".format(*ends["entropy-budget"], *ends["entropy-floor"]),
        "(no control: {} at {})".format(*ends["none"]),
        f"below 8 from update {5 * below['entropy-floor'][0] + 1} to {5 * below['entropy-floor'][-1] + 5}, "
        f"and at {distinct['entropy-floor'][floor]:.1f} at the lowest point",
        f"Entropy-budget is at {distinct['entropy-budget'][early]:.1f} at update {5 * early + 5} and at "
        f"{distinct['entropy-budget'][again]:.1f} at update {5 * again + 5}",
        "to {}, {} and {}".format(*map(short, dips)),
        f"to {short(reward['none'][slump])} at update {5 * slump + 5}",
        f"slope was +{short(slope, 4)} on average",
    ]
    assert missing(expected, "Three times as long: who holds, who only delays") == []
    guide = " ".join((ROOT / "docs/howto/choose_a_rule.md").read_text().split())
    (budget, its_reward), (own, our_reward) = ends["entropy-budget"], ends["entropy-floor"]
    assert f"they had {budget} and {own} distinct answers at a reward of {its_reward} and {our_reward}" in guide
    readme = (ROOT / "README.md").read_text()
    assert f"a late dip, to {distinct['entropy-floor'][floor]:.1f} and {short(dips[0])} |" in readme


HELD = ("adaptive-entropy", "clip-b", "clip-v", "entropy-budget", "entropy-floor")


def two_updates() -> list[str]:
    methods = record("control_contest_contest")["sum"]["methods"]
    return [method for method, row in methods.items() if row["updates"] == 2]


RATES = {"0.0006": "6e-4", "0.0018": "1.8e-3", "0.0002": "2e-4"}


def loop_settings(name: str) -> dict[tuple[str, str], dict]:
    """The settings of a record of the control loop, by run and rule as the page names them."""
    found = {}
    for words, row in record(name)["settings"].items():
        where, options = re.fullmatch(r"(.*), (?:entropy-floor\(floor=[\d.]+, (.*)\)|gain .*)", words).groups()
        where = re.sub(r"0\.\d{4}", lambda rate: RATES[rate[0]], where)
        found[where, options or words.rsplit(", ", 1)[1].replace(" ", "=")] = row
    return found


def test_the_control_loop() -> None:
    own, frozen = loop_settings("floor_control"), loop_settings("floor_control_options")
    assert not own.keys() & frozen.keys()
    assert len(frozen) == 8
    assert re.fullmatch(r"[0-9a-f]{40}", whole_record("floor_control_options")["script"]["commit"])
    expected: dict[tuple[str, str], list[str]] = {}
    for key, row in (own | frozen).items():
        columns = {"offset": 3, "lowest": 3, "shortfall": 3, "reward": 2}
        means = [f"{row[column]['mean']:.{digits}f}" for column, digits in columns.items()]
        dropped = f"{row['dropped_share']['mean']:.1%}".replace("%", " %")
        seeds, never = len(row["reward"]["values"]), row["never_below"]
        assert len(row["shortfall"]["values"]) == seeds - never
        expected[key] = [f"{seeds}, {seeds - never} below" if never else f"{seeds}", *means, dropped]
    shown = {(where, options): cells for where, options, *cells in table("### What holds a floor")}
    assert shown == {key: expected[key] for key in shown}
    # Of the bank the page leaves out gains between those that it shows.
    assert {key for key in expected if key[0].startswith("decoder")} <= shown.keys()
    assert len(shown) == 31


def shortfall_of(entropy: Sequence[float], floor: float) -> float:
    """The mean of max(0, floor − H), as a share of the floor, from the first value below it on."""
    first = next(place for place, value in enumerate(entropy) if value < floor)
    return mean([max(0.0, floor - value) for value in entropy[first:]]) / floor


def shortfalls(stage: str, rule: str, floor: float) -> list[float]:
    entries = [e for e in whole_record(f"control_contest_{stage}")["results"] if e["task"]["rule"] == rule]
    return [shortfall_of([h for h in e["result"]["curves"]["entropy"] if h is not None], floor) for e in entries]


def test_what_is_said_of_the_control_loop() -> None:
    settings = loop_settings("floor_control") | loop_settings("floor_control_options")
    rows = {
        gain: {k: row for k, row in settings.items() if k[1] == f"gain={gain}"} for gain in ("0", "0.03", "0.3", "1")
    }
    largest = max(row["shortfall"]["mean"] for row in rows["0.3"].values())
    deepest = max(0.65 - row["lowest"]["mean"] for key, row in rows["0.3"].items() if key[0].startswith("decoder"))
    share = max(row["shortfall_of_floor"] for row in rows["0.3"].values())
    slow, fast, few = "decoder, rate 6e-4", "decoder, rate 1.8e-3", "decoder, rate 6e-4, 2 prompts"
    arithmetic = shortfalls("contest", "entropy-floor(floor=0.2, gain=0.03)", 0.2)
    real = shortfalls("model", "entropy-floor(floor=0.8, gain=0.03)", 0.8)
    (long,) = shortfalls("long", "entropy-floor(floor=0.65, gain=0)", 0.65)
    assert (len(arithmetic), len(real)) == (5, 3)
    assert max(row["shortfall_of_floor"] for row in rows["0.03"].values()) < 0.1
    assert rows["0"]["decoder, rate 2e-4", "gain=0"]["shortfall_of_floor"] < 0.1

    def of(where: str, options: str) -> str:
        return short(mean(settings[where, options]["shortfall"]["values"][:2]), 3)  # seeds 0 and 1, which all rows have

    four = [short(value, 3) for value in settings[fast, "gain=0.03, lookahead=4"]["shortfall"]["values"]]
    rewards = {
        where: [short(row["reward"]["mean"]) for key, row in settings.items() if key[0] == where and "," not in key[1]]
        for where in (fast, few)
    }
    gains = ("gain=0.03", "gain=0.1", "gain=0.3")
    options = tuple(f"gain=0.03, {words}" for words in ("lookahead=1", "integral=0.001", "integral=0.01"))
    wide = short(settings[slow, "gain=0.03, lookahead=4"]["offset"]["mean"], 3)
    steep = [short(settings["bank, step 2", f"gain={gain}"]["shortfall"]["mean"], 3) for gain in ("1", "0.3")]
    expected = [
        f"mean shortfall is {short(largest, 3)} nats or less, in no run more than {100 * share:.1f} % of the floor",
        f"gain 0 ends at {short(settings[fast, 'gain=0']['final_entropy']['mean'])} nats",
        f"up to {short(deepest)} nats below the floor",
        f"falls short by {short(min(arithmetic))} to {short(max(arithmetic))} of the floor in the five seeds",
        f"on the real model by {short(min(real))} to {short(max(real))} in three",
        f"({short(settings[slow, 'gain=0']['shortfall_of_floor'])} of the floor at worst)",
        f"in the run of 960 updates ({short(long)})",
        "({} against {})".format(*steep),
        "is {} with a gain of .03 alone, {} with .1 and {} with .3.".format(*(of(slow, g) for g in gains)),
        "With a lookahead of one batch it is {}, with the integrals {} and {};".format(*(of(slow, o) for o in options)),
        f"a lookahead of four batches stays above the floor by {wide}",
        f"At 1.8e-3 it is {of(fast, gains[0])} with a gain of .03 alone and {of(fast, gains[-1])} with .3",
        "With a lookahead of one batch it is {}, with the integrals {} and {};".format(*(of(fast, o) for o in options)),
        "with a lookahead of four it is {} in one seed and {} in the other".format(*four),
        f"{min(rewards[fast])} to {max(rewards[fast])} at rate 1.8e-3",
        f"{min(rewards[few])} to {max(rewards[few])} with 2 prompts",
    ]
    assert missing(expected, "What holds a floor") == []
