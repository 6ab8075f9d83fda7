"""The parameters of rules: each is declared with its default and its range, and checked when a rule is made.

A rule's field `mu: float = number(2.5, 0.0)` is a number in [0, 1e+09], 2.5 unless given. The declarations are data:
the table of rules prints them, and the tests drive every rule to both ends of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from entropy_theory.errors import invalid, number_in

LARGEST = 1e9
"""The end of every range that has no closer one: beyond it, products of a few parameters and statistics overflow."""

SMALLEST = 1e-6
"""The least value of parameters that are divided by."""

T = TypeVar("T")


@dataclass(frozen=True)
class Number:
    """The range of a number: [low, high], or (low, high] when `above`; None is allowed when `optional`.

    Example:
        >>> str(Number(0.0, 1.0)), Number(0.0, 1.0)("clip-v max_fraction", 1)
        ('[0, 1]', 1.0)
    """

    low: float
    high: float
    above: bool = False
    optional: bool = False

    def __call__(self, name: str, value: object) -> float | None:
        """Return the value as a float, or raise an error that names the parameter."""
        if value is None and self.optional:
            return None
        return number_in(name, value, self.low, self.high, above=self.above)

    def __str__(self) -> str:
        return f"{'(' if self.above else '['}{self.low:g}, {self.high:g}]" + (" or None" if self.optional else "")


@dataclass(frozen=True)
class Choice:
    """The few values that a parameter may have.

    Example:
        >>> str(Choice(("lower", "upper", "both")))
        "'lower', 'upper' or 'both'"
    """

    values: tuple[object, ...]

    def __call__(self, name: str, value: object) -> object:
        """Return the value, or raise an error that names the parameter."""
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in self.values):
            raise invalid(name, f"one of {', '.join(map(repr, self.values))}", repr(value))
        return value

    def __str__(self) -> str:
        *most, last = map(repr, self.values)
        return f"{', '.join(most)} or {last}"


def parameter(default: object, check: Callable[[str, object], object]) -> Any:
    """Declare a parameter with a check of its own, which returns the value to keep."""
    return field(default=default, metadata={"check": check})


def number(
    default: float | None, low: float = -LARGEST, high: float = LARGEST, *, above: bool = False, optional: bool = False
) -> Any:
    """Declare a number in [low, high], or (low, high] when `above`; with the default None or `optional`, None too."""
    return parameter(default, Number(low, high, above, optional or default is None))


def choice(default: object, values: Any) -> Any:
    """Declare a parameter with a few values: those of a `Literal`, or of a tuple."""
    return parameter(default, Choice(values if isinstance(values, tuple) else get_args(values)))


def flag(default: bool) -> Any:
    """Declare a parameter that is True or False."""
    return parameter(default, Choice((True, False)))


class _Decided:
    """See `decided`."""

    def __init__(self, decide: Callable[[Any], object]) -> None:
        self._decide, self.__doc__ = decide, decide.__doc__

    def __get__(self, rule: object, cls: type) -> object:
        return self._decide(cls if rule is None else rule)


def decided(decide: Callable[[Any], T]) -> T:
    """Make an attribute of a rule that its parameters decide, as a property; on the class, they have their defaults.

    Example:
        >>> from entropy_theory.control.rules.reweighting import Steer
        >>> Steer.phase, Steer(frozen=True).phase
        ('live', 'batch')
    """
    return _Decided(decide)  # type: ignore[return-value]
