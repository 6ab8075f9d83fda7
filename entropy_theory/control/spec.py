"""The text form of a rule: `name`, `name(parameter=value, ...)`, and several of them joined by `|`.

Values are Python literals (numbers, quoted strings, None, True, False). Nothing is evaluated. A specification
inside quotes may itself contain parentheses and bars.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from entropy_theory.errors import invalid

_EXPECTED = "name, name(parameter=value, ...) or several joined by |"
_CALL = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*(?:\((.*)\)\s*)?", re.DOTALL)


def parse_spec(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Split a specification into rule names and their parameters.

    Args:
        text: The specification.

    Returns:
        One (name, parameters) pair per rule, left to right.

    Raises:
        ValueError: the text has another form, a parameter repeats, or a value is not a literal.

    Example:
        >>> parse_spec("clip-b(mu=1) | ppo-clip")
        [('clip-b', {'mu': 1}), ('ppo-clip', {})]
        >>> parse_spec("random-mask(match='clip-b(mu=1)|ppo-clip')")
        [('random-mask', {'match': 'clip-b(mu=1)|ppo-clip'})]
    """
    return [_parse_call(part, text) for part in _split(text)]


def _split(text: str) -> list[str]:
    """Cut at the bars that lie outside quotes and parentheses."""
    parts, start, depth, quote, position = [], 0, 0, "", 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\":
                position += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "|" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [*parts, text[start:]]


def _parse_call(part: str, whole: str) -> tuple[str, dict[str, Any]]:
    match = _CALL.fullmatch(part)
    if match is None:
        raise invalid("rule", _EXPECTED, repr(whole))
    name, arguments = match.group(1), match.group(2)
    if arguments is None:
        return name, {}
    try:
        call = ast.parse(f"_({arguments})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise invalid("rule", _EXPECTED, repr(whole)) from error
    # text such as "a)+f(b" parses, but not to the one call that was written
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise invalid("rule", _EXPECTED, repr(whole))
    parameters: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in parameters:
            raise invalid("rule", f"each parameter of {name} once, as parameter=value", repr(whole))
        try:
            parameters[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            value = ast.get_source_segment(f"_({arguments})", keyword.value)
            raise invalid(keyword.arg, "a number, a quoted text, None, True or False", value) from error
    return name, parameters


def format_value(value: object) -> str:
    """Write a parameter so that `parse_spec` reads it back.

    Example:
        >>> format_value(1.0), format_value(2.5), format_value("upper"), format_value(None)
        ('1', '2.5', "'upper'", 'None')
    """
    text = repr(value)
    return text.removesuffix(".0") if isinstance(value, float) else text
