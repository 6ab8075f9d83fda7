"""Arithmetic in steps: what is right is right by Python's own arithmetic, and what is wrong is found."""

from __future__ import annotations

import ast
from itertools import pairwise

import numpy as np
import pytest

from entropy_theory.testbed import arithmetic, decoder


def python_value(text: str) -> int:
    """The value by Python's parser, which shares nothing with ours."""
    return eval(compile(ast.parse(text, mode="eval"), "", "eval"), {"__builtins__": {}})


@pytest.mark.parametrize("seed", range(3))
def test_demonstrations_are_right_by_python(seed: int) -> None:
    pairs = arithmetic.demonstrations(200, 0.0, np.random.default_rng(seed), numbers=6)
    for prompt, answer in pairs:
        chain = [prompt[:-1], *answer.split("=")]
        assert len({python_value(part) for part in chain}) == 1
        assert len(chain) == 6  # one operation at a time
        assert arithmetic.is_right(prompt[:-1], answer)
    assert any("*" in prompt for prompt, _ in pairs)
    assert any(answer.split("=")[-1].startswith("-") for _, answer in pairs)


def test_wrong_demonstrations_are_wrong_in_one_step() -> None:
    for prompt, answer in arithmetic.demonstrations(200, 1.0, np.random.default_rng(0)):
        values = [python_value(part) for part in (prompt[:-1], *answer.split("="))]
        changes = sum(a != b for a, b in pairwise(values))
        # The wrong number may be multiplied by nothing, never by 0: one step changes the value, the others do not.
        assert changes == 1
        assert not arithmetic.is_right(prompt[:-1], answer)


def test_every_character_is_known_to_the_tokenizer() -> None:
    tokenizer = decoder.build_tokenizer()
    for prompt, answer in arithmetic.demonstrations(50, 0.5, np.random.default_rng(1)):
        ids = tokenizer(prompt + answer)["input_ids"]
        assert tokenizer.pad_token_id not in ids
        assert tokenizer.decode(ids) == prompt + answer


@pytest.mark.parametrize(
    "answer",
    ["", "=", "23=", "=23", "3+20=24", "3+20", "20+3=20+3=23", "4*5+3=23", "3+20=23=23", "3 +20=23", "+23", "023x"],
)
def test_what_is_not_right(answer: str) -> None:
    assert not arithmetic.is_right("3+4*5", answer)


def test_a_huge_number_is_refused_quickly() -> None:
    assert not arithmetic.is_right("3+4", "9" * 4000)


def test_distinct_right_answers_are_counted_per_prompt() -> None:
    seen: dict[str, float] = {}
    answers = ["3+20=23", "3+20=23", "23", "9=9", "7", "8"]
    rewards = arithmetic.reward(answers, ["3+4*5"] * 4 + ["3+4"] * 2, log_metric=seen.__setitem__)
    assert rewards == [1, 1, 1, 0, 1, 0]
    assert seen == {"distinct_right": 1.5}


def test_dataset_depends_on_the_seed_alone() -> None:
    pytest.importorskip("datasets")
    one, same, other = (arithmetic.dataset(20, seed).to_dict() for seed in (0, 0, 1))
    assert one == same != other
