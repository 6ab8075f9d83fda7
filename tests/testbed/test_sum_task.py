"""The sum task: what is right is right, and the demonstrations are what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_theory.testbed import sum_task


def test_right_answers_are_right_and_complete() -> None:
    for target in sum_task.TARGETS:
        answers = sum_task.right_answers(target)
        assert all(sum_task.is_right(target, "+".join(map(str, digits))) for digits in answers)
    # Every quadruple of digits has one sum.
    assert sum(len(sum_task.right_answers(t)) for t in range(37)) == 10**4
    assert min(len(sum_task.right_answers(t)) for t in sum_task.TARGETS) == 84


@pytest.mark.parametrize(
    "answer", ["", "17", "9+8", "9+8+0", "10+7+0+0", "9+8+0+0+0", "9+8+0+0=", "+9+8+0+0", "a+b+c+d"]
)
def test_wrong_forms(answer: str) -> None:
    assert not sum_task.is_right(17, answer)


def test_wrong_share_of_demonstrations() -> None:
    def right_share(wrong: float) -> float:
        texts = sum_task.demonstrations(4000, wrong, np.random.default_rng(0))
        return float(np.mean([sum_task.is_right(int(t.split("=")[0]), t.split("=")[1]) for t in texts]))

    assert right_share(0.0) == 1.0
    # A random quadruple hits the target with probability under 0.07; 4 standard errors of 4000 draws are 0.03.
    assert right_share(0.5) == pytest.approx(0.53, abs=0.04)


def test_distinct_right_counts_by_group() -> None:
    answers = ["0+0+0+1", "1+0+0+0", "1+0+0+0", "1+0+0+1"]
    assert sum_task.mean_distinct_right([1, 1, 1, 1], answers, 2) == 1.5
    with pytest.raises(ValueError, match="answers: expected one or more whole groups of 3, received 4"):
        sum_task.mean_distinct_right([1, 1, 1, 1], answers, 3)


def test_dataset_depends_on_the_seed_alone() -> None:
    pytest.importorskip("datasets")
    one, same, other = (sum_task.dataset(50, seed).to_dict() for seed in (0, 0, 1))
    assert one == same != other
    assert all(p == f"{t}=" for p, t in zip(one["prompt"], one["target"], strict=True))
