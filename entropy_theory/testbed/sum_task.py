"""The sum task: write four digits with a given sum.

The prompt is ``17=``; any ``a+b+c+d`` of four digits with that sum is right. There are many right answers to most
prompts, so a policy can be right and diverse, or right and collapsed, and the difference can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from entropy_theory.errors import invalid

if TYPE_CHECKING:
    from datasets import Dataset

DIGITS = 4
ANSWER_LENGTH = 2 * DIGITS - 1  # digits and plus signs
TARGETS = range(6, 31)  # sums with at least 84 right answers each, so that no prompt forces a narrow policy
_ANSWER = re.compile(rf"\d(?:\+\d){{{DIGITS - 1}}}")


@cache
def right_answers(target: int) -> tuple[tuple[int, ...], ...]:
    """List every tuple of four digits with the given sum.

    Example:
        >>> right_answers(1)
        ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0))
        >>> len(right_answers(18))
        670
    """
    return tuple(digits for digits in product(range(10), repeat=DIGITS) if sum(digits) == target)


def prompt(target: int) -> str:
    """Write the prompt that asks for a sum.

    Example:
        >>> prompt(17)
        '17='
    """
    return f"{target}="


def is_right(target: int, answer: str) -> bool:
    """Check an answer: four single digits joined by plus signs, with the right sum, and nothing else.

    Example:
        >>> is_right(17, "9+0+1+7"), is_right(17, "9+0+1+6"), is_right(17, "17"), is_right(17, "9+0+1+7+0")
        (True, False, False, False)
    """
    answer = answer.strip()
    return bool(_ANSWER.fullmatch(answer)) and sum(map(int, answer.split("+"))) == target


def reward(completions: Sequence[str], target: Sequence[int], **_: object) -> list[float]:
    """Reward function in TRL's form: 1.0 for a right answer, 0.0 otherwise."""
    return [float(is_right(t, c)) for t, c in zip(target, completions, strict=True)]


def mean_distinct_right(targets: Sequence[int], answers: Sequence[str], group_size: int) -> float:
    """Count the distinct right answers in each group of answers to one prompt and average over the groups.

    Args:
        targets: The sum asked of each answer.
        answers: The texts, group after group.
        group_size: Answers per prompt.

    Returns:
        Σ_groups |{right answers}| / number of groups.

    Raises:
        ValueError: The answers do not fill whole groups.

    Example:
        >>> mean_distinct_right([1, 1, 1, 2, 2, 2], ["0+0+0+1", "0+0+0+1", "1+0+0+0", "9", "9", "9"], group_size=3)
        1.0
    """
    if not answers or len(answers) % group_size:
        raise invalid("answers", f"one or more whole groups of {group_size}", len(answers))
    pairs = list(zip(targets, answers, strict=True))
    groups = [pairs[i : i + group_size] for i in range(0, len(pairs), group_size)]
    return sum(len({a.strip() for t, a in group if is_right(t, a)}) for group in groups) / len(groups)


def demonstrations(count: int, wrong_share: float, generator: np.random.Generator) -> list[str]:
    """Draw texts ``17=9+0+1+7`` for the supervised warm-up, some of them wrong on purpose.

    Right answers are uniform over all right answers of a uniform target; wrong ones are four uniform digits. The wrong
    share leaves the policy room to improve, so that reinforcement learning has something to do.
    """
    if not 0 <= wrong_share <= 1:
        raise invalid("wrong_share", "a probability in [0, 1]", wrong_share)
    texts = []
    for _ in range(count):
        target = int(generator.integers(TARGETS.start, TARGETS.stop))
        if generator.random() < wrong_share:
            digits = tuple(int(x) for x in generator.integers(0, 10, DIGITS))
        else:
            answers = right_answers(target)
            digits = answers[generator.integers(len(answers))]
        texts.append(prompt(target) + "+".join(map(str, digits)))
    return texts


def dataset(count: int, seed: int) -> Dataset:
    """Build the prompts for GRPO: columns ``prompt`` and ``target``, targets uniform."""
    from datasets import Dataset

    targets = np.random.default_rng(seed).integers(TARGETS.start, TARGETS.stop, count).tolist()
    return Dataset.from_dict({"prompt": [prompt(t) for t in targets], "target": targets})
