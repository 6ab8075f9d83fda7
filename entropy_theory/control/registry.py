"""Rules by name: registration, and rules from the text that the command line, YAML and Python share."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any, TypeVar

from entropy_theory.control.base import Pipe, Rule
from entropy_theory.control.spec import parse_spec
from entropy_theory.errors import invalid

REGISTRY: dict[str, type[Rule]] = {}
"""The rule classes by name; `register` adds to it."""

R = TypeVar("R", bound=type[Rule])


def register(cls: R) -> R:
    """Make a rule class findable by its name; a decorator for frozen dataclasses.

    Raises:
        ValueError: the class has no name, the name is not one a specification can spell, or it is taken.

    Example:
        >>> register(rule_class("none")).name  # registering the same class again changes nothing
        'none'
    """
    if not cls.name or [name for name, _ in parse_spec(cls.name)] != [cls.name]:
        raise invalid("name", f"a name made of letters, digits and hyphens on {cls.__name__}", repr(cls.name))
    if REGISTRY.setdefault(cls.name, cls) is not cls:
        raise invalid("name", f"a name that {REGISTRY[cls.name].__name__} has not taken", repr(cls.name))
    return cls


def rule_names() -> tuple[str, ...]:
    """List the names that `rule` knows, in alphabetical order.

    Example:
        >>> "clip-b" in rule_names()
        True
    """
    return tuple(sorted(REGISTRY))


def rule_class(name: str) -> type[Rule]:
    """Find a rule class by name.

    Raises:
        ValueError: no such rule; the message lists the names and the closest one.

    Example:
        >>> rule_class("none").__name__
        'NoControl'
    """
    if name not in REGISTRY:
        raise invalid("rule", f"one of {', '.join(rule_names())}", repr(name) + _did_you_mean(name, rule_names()))
    return REGISTRY[name]


def rule(spec: str | Rule, **params: object) -> Rule:
    """Make a rule from its name and parameters, or from a specification.

    A specification is `name`, `name(parameter=value, ...)`, or several of them joined by `|`. Printing a rule gives a
    specification that makes an equal rule.

    Args:
        spec: A name, a specification, or a rule, which is returned as it is.
        **params: Parameters of a single rule, besides those in its parentheses.

    Returns:
        The rule; a `Pipe` when there are several.

    Raises:
        ValueError: unknown rule or parameter (with the closest match), a value out of range, text of another form,
            or parameters for a pipe or a finished rule.

    Example:
        >>> rule("clip-b", mu=1) == rule("clip-b(mu=1)") == rule(str(rule("clip-b", mu=1.0)))
        True
        >>> rule("clip-bb")
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: rule: expected one of ..., received 'clip-bb'; did you mean 'clip-b'?
    """
    if isinstance(spec, Rule):
        if params:
            raise invalid(next(iter(params)), "no parameters beside a finished rule", repr(str(spec)))
        return spec
    calls = parse_spec(spec)
    if len(calls) > 1:
        if params:
            raise invalid(next(iter(params)), "parameters of a pipe inside its specification", repr(spec))
        return Pipe(tuple(_make(name, parameters) for name, parameters in calls))
    name, parameters = calls[0]
    for twice in parameters.keys() & params.keys():
        raise invalid(twice, "a parameter given once", repr(spec) + f" and {twice}={params[twice]!r}")
    return _make(name, {**parameters, **params})


def _make(name: str, parameters: dict[str, Any]) -> Rule:
    cls = rule_class(name)
    known = tuple(f.name for f in fields(cls))
    for parameter in parameters:
        if parameter not in known:
            expected = f"one of {', '.join(known)}" if known else "no parameters"
            raise invalid(f"{name} parameter", expected, repr(parameter) + _did_you_mean(parameter, known))
    return cls(**parameters)


def _did_you_mean(word: str, words: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
