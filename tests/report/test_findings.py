"""The report's sentences follow the numbers, whichever way they fall."""

from __future__ import annotations

import pytest

from entropy_theory.intervals import Interval, t_interval
from entropy_theory.report import findings


def arm(entropy: list[float], dropped: float = 0.02) -> dict[str, Interval]:
    return {
        "entropy": t_interval(entropy),
        "reward": t_interval([0.8] * len(entropy)),
        "distinct_right": t_interval([10 * h for h in entropy]),
        "dropped_share": t_interval([dropped] * len(entropy)),
    }


def finals(base: list[float], clip: list[float], mask: list[float]) -> dict[str, dict[str, Interval]]:
    return {"GRPO": arm(base, 0.0), "Clip_B": arm(clip), "Random mask": arm(mask)}


LOW, HIGH = [0.20, 0.21, 0.19], [0.60, 0.61, 0.59]


def test_a_clear_run() -> None:
    sentences = findings.arms(finals(LOW, HIGH, LOW))
    assert (
        "Clip_B dropped 2.0% of the tokens of the last steps and ended at an entropy of 0.60 [0.58, 0.62] nats"
        in sentences[0]
    )
    assert "which is 0.33 of it. The intervals are apart." in sentences[0]
    assert "The intervals overlap" in sentences[1]
    assert "what counts is not how many tokens are dropped but which" in sentences[1]
    assert "no claim about accuracy" in sentences[-1]
    headline = findings.headline(finals(LOW, HIGH, LOW))
    assert "fell to 0.20 nats without control and to 0.60 under Clip_B" in headline
    assert headline.endswith("which dropped 2.0% of the tokens of the last steps.")


def test_a_run_that_shows_nothing() -> None:
    sentences = findings.arms(finals(LOW, LOW, LOW))
    assert all("The intervals overlap" in s for s in sentences[:2])
    assert not any("but which" in s for s in sentences)


def test_an_arm_that_drops_nothing_says_so() -> None:
    sentences = findings.arms(finals(LOW, HIGH, LOW) | {"Entropy bonus": arm(HIGH, 0.0)})
    assert any(
        s.startswith("Entropy bonus dropped nothing in the last steps and ended at an entropy of 0.60")
        for s in sentences
    )


def test_a_run_that_goes_the_other_way() -> None:
    assert "did not keep entropy up" in findings.headline(finals(HIGH, LOW, LOW))
    sentences = findings.arms(finals(LOW, HIGH, HIGH))
    assert "The intervals are apart." in sentences[1]
    assert not any("but which" in s for s in sentences)


def test_a_run_without_an_advantage_counts_no_signs() -> None:
    sentence = findings.steps([], [])
    assert sentence.startswith("No step of the uncontrolled arm had an advantage")
    assert "0 of 0" not in sentence


def test_one_seed_has_no_interval() -> None:
    sentences = findings.arms(finals([0.2], [0.6], [0.2]))
    assert all("One seed: there is no interval to compare." in s for s in sentences[:3])


def test_official_thresholds_both_ways() -> None:
    assert "almost nothing" in findings.official_thresholds({"clip-b": 1e-5, "clip-v": 0.0})
    assert "they act too" in findings.official_thresholds({"clip-b": 0.02, "clip-v": 0.0})


def test_wrong_signs_and_wrong_means_are_said() -> None:
    conditions = [
        {"observed_sign": 1, "predicted_sign": 1, "z": 20.0},
        {"observed_sign": 1, "predicted_sign": -1, "z": 4.0},
    ]
    assert findings.four_conditions(conditions).startswith("1 of 2 signs are as predicted; the weakest is 4 ")
    base = {"sampler": "on-policy", "tokens": 10, "discriminant": 0.1, "centered": 0.1, "standard_error": 0.1}
    assert findings.centring([{**base, "z": 1.0}])[0].endswith("as good as zero.")
    assert findings.centring([{**base, "z": -9.0}])[0].endswith("not zero.")


@pytest.mark.parametrize(("values", "expected"), [([1.0, 2.0, 4.0], (2.3333, 3.7946)), ([5.0, 5.0], (5.0, 0.0))])
def test_t_interval_against_scipy(values: list[float], expected: tuple[float, float]) -> None:
    from scipy import stats

    interval = t_interval(values)
    assert (round(interval.mean, 4), round(interval.half_width, 4)) == expected
    if expected[1]:
        low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert (interval.low, interval.high) == pytest.approx((low, high))


def test_t_interval_bad_input() -> None:
    with pytest.raises(ValueError, match="values: expected one or more finite numbers"):
        t_interval([])
    with pytest.raises(ValueError, match="finite"):
        t_interval([float("nan")])
    with pytest.raises(ValueError, match="level"):
        t_interval([1.0], level=1.0)
    assert not t_interval([1.0]).apart_from(t_interval([2.0]))
