"""Arithmetic in steps: reduce a sum of products to a number, one rewriting after another.

The prompt is ``3+4*5-6=``; a right answer such as ``3+20-6=23-6=17`` rewrites it into ever fewer numbers of the same
value until one is left. The order of the steps is free, so there are many right answers, and long ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from entropy_theory.errors import invalid

if TYPE_CHECKING:
    from datasets import Dataset

Product = tuple[int, tuple[int, ...]]
"""A signed product, such as −4·5 as (−1, (4, 5))."""

PRODUCT_SHARE = 0.25  # of the operations of a drawn expression
_NUMBER = r"\d{1,9}"
_EXPRESSION = re.compile(rf"-?{_NUMBER}(?:[-+*]{_NUMBER})*")
_PRODUCT = re.compile(rf"([-+]?)({_NUMBER}(?:\*{_NUMBER})*)")


def parse(text: str) -> list[Product] | None:
    """Read an expression as a sum of signed products; None when it is none.

    Example:
        >>> parse("3-4*5"), parse("3-*4")
        ([(1, (3,)), (-1, (4, 5))], None)
    """
    if not _EXPRESSION.fullmatch(text):
        return None
    return [(-1 if m[1] == "-" else 1, tuple(map(int, m[2].split("*")))) for m in _PRODUCT.finditer(text)]


def render(products: Sequence[Product]) -> str:
    """Write a sum of signed products.

    Example:
        >>> render([(1, (3,)), (-1, (4, 5))])
        '3-4*5'
    """
    text = "".join("+-"[sign < 0] + "*".join(map(str, factors)) for sign, factors in products)
    return text.removeprefix("+")


def value(products: Sequence[Product]) -> int:
    """Compute Σ ± Π.

    Example:
        >>> value([(1, (3,)), (-1, (4, 5))])
        -17
    """
    total = 0
    for sign, factors in products:
        product = sign
        for factor in factors:
            product *= factor
        total += product
    return total


def _numbers(products: Sequence[Product]) -> int:
    return sum(len(factors) for _, factors in products)


def is_right(expression: str, answer: str) -> bool:
    """Check an answer: expressions of the same value and ever fewer numbers, joined by "=", down to one number.

    Example:
        >>> [is_right("3+4*5", answer) for answer in ("3+20=23", "23", "7*5=35", "3+20", "23=23")]
        [True, True, False, False, False]
    """
    chain = [parse(part) for part in (expression, *answer.strip().split("="))]
    whole = [products for products in chain if products is not None]
    if len(whole) < len(chain):
        return False
    sizes = [_numbers(products) for products in whole]
    same = all(value(products) == value(whole[0]) for products in whole)
    return same and sizes[-1] == 1 and all(a > b for a, b in pairwise(sizes))


def reward(completions: Sequence[str], expression: Sequence[str], **extra: Any) -> list[float]:
    """Reward function in TRL's form: 1.0 for a right answer, 0.0 otherwise; logs the distinct right answers per prompt.

    Args:
        completions: The texts that the policy wrote, group after group.
        expression: The prompts' expressions, a column of the dataset.
        **extra: What else TRL passes, among it ``log_metric``.

    Example:
        >>> reward(["3+20=23", "24"], ["3+4*5", "3+4*5"])
        [1.0, 0.0]
    """
    rewards = [float(is_right(e, c)) for e, c in zip(expression, completions, strict=True)]
    if extra.get("log_metric") is not None:
        rows = sorted(zip(expression, completions, rewards, strict=True))
        groups = [{c.strip() for _, c, r in group if r} for _, group in groupby(rows, key=lambda row: row[0])]
        extra["log_metric"]("distinct_right", sum(map(len, groups)) / len(groups))
    return rewards


def draw(generator: np.random.Generator, numbers: int = 5, largest: int = 20) -> str:
    """Draw an expression.

    Example:
        >>> draw(np.random.default_rng(2), numbers=4)
        '17-4*6+18'
    """
    if numbers < 2 or largest < 2:
        raise invalid("numbers, largest", "integers >= 2", (numbers, largest))
    products: list[Product] = [(1, (int(generator.integers(1, largest + 1)),))]
    for _ in range(numbers - 1):
        sign, factors = products[-1]
        if generator.random() < PRODUCT_SHARE and len(factors) < 2:
            pair = generator.integers(2, 10, 2)
            products[-1] = (sign, (int(pair[0]), int(pair[1])))
        else:
            products.append((1 if generator.random() < 0.5 else -1, (int(generator.integers(1, largest + 1)),)))
    return render(products)


def derive(expression: str, generator: np.random.Generator, wrong: bool = False) -> str:
    """Write an answer that takes one operation at a time, in a random order; if `wrong`, one of them is off by 1 to 9.

    Example:
        >>> derive("3+4*5-6", np.random.default_rng(0))
        '3+20-6=3+14=17'
    """
    products = parse(expression)
    if products is None:
        raise invalid("expression", "numbers joined by +, - and *", repr(expression))
    operations = _numbers(products) - 1
    fault = int(generator.integers(operations)) if wrong and operations else -1
    steps = []
    for number in range(operations):
        # A product is taken whole, two neighbours only when both are plain numbers.
        places = [i for i, (_, factors) in enumerate(products) if len(factors) > 1]
        plain = [len(factors) == 1 for _, factors in products]
        places += [len(products) + i for i in range(len(products) - 1) if plain[i] and plain[i + 1]]
        place = int(generator.choice(places))
        off = int(generator.integers(1, 10)) if number == fault else 0
        if place < len(products):
            sign, factors = products[place]
            products[place] = (sign, (factors[0] * factors[1] + off, *factors[2:]))
        else:
            i = place - len(products)
            total = value(products[i : i + 2]) + off
            products[i : i + 2] = [(1 if total >= 0 else -1, (abs(total),))]
        steps.append(render(products))
    return "=".join(steps)


def demonstrations(
    count: int, wrong_share: float, generator: np.random.Generator, numbers: int = 5, largest: int = 20
) -> list[tuple[str, str]]:
    """Draw prompts with answers for the supervised warm-up, some of them wrong on purpose."""
    if not 0 <= wrong_share <= 1:
        raise invalid("wrong_share", "a probability in [0, 1]", wrong_share)
    pairs = []
    for _ in range(count):
        expression = draw(generator, numbers, largest)
        pairs.append((expression + "=", derive(expression, generator, wrong=bool(generator.random() < wrong_share))))
    return pairs


def dataset(count: int, seed: int, numbers: int = 5, largest: int = 20) -> Dataset:
    """Build the prompts for GRPO: columns ``prompt`` and ``expression``."""
    from datasets import Dataset

    generator = np.random.default_rng(seed)
    expressions = [draw(generator, numbers, largest) for _ in range(count)]
    return Dataset.from_dict({"prompt": [e + "=" for e in expressions], "expression": expressions})
