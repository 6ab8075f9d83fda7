"""Answers that may be handed to a verifier which evaluates them as code.

Some verifiers of reasoning-gym call ``eval`` or sympy's ``parse_expr``, which evaluates too, on what a policy wrote. A
completion could then run code, or keep a process busy for years with one large power. Such a verifier is only asked
about answers that can do neither.
"""

from __future__ import annotations

import ast
import math
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WORDS = re.compile(r"[\w\s.,:;+°-]*")
"""Texts without brackets, quotes and operators but those of sums: evaluated, they name things and call nothing."""
_LARGE = re.compile(r"\d[eE][+-]?[\d_]{4,}")
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "tanh", "asinh", "acosh", "atanh"}
    | {"log", "ln", "sqrt", "abs", "Abs", "Integral"}
)
_EXPONENTIALS = frozenset({"exp", "sinh", "cosh"})
_DIGITS = 1e4
"""Decimal digits of the largest number that an answer may make."""


def is_harmless(answer: str) -> bool:
    r"""Say whether evaluating an answer can neither call anything but elementary functions nor take long.

    So are words, signed numbers and their sums; Python's literals; and arithmetic of numbers, names and elementary
    functions whose largest number has at most 10,000 digits.

    Example:
        >>> [is_harmless(text) for text in ("(25+3)*2", "x**3/3 + sin(x) + C", "['A', 'B']", "0 1\n1 0")]
        [True, True, True, True]
        >>> [is_harmless(text) for text in ("__import__('os')", "9**9**9**9", "factorial(10**9)", "sin('f()')")]
        [False, False, False, False]
    """
    if _LARGE.search(answer):
        return False
    if _WORDS.fullmatch(answer):
        return True
    try:
        tree = ast.parse(answer, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    try:
        ast.literal_eval(tree)
    except (ValueError, TypeError, MemoryError, RecursionError):
        try:
            return _digits(tree) <= _DIGITS
        except (ValueError, RecursionError):
            return False
    return True


def _digits(node: ast.expr) -> float:
    """Decimal digits of the largest number that arithmetic can make, from above; ValueError for anything else."""
    match node:
        case ast.Constant(value=bool()):
            raise ValueError
        case ast.Constant(value=int() | float() as number):
            return 0.0 if number == 0 else abs(math.log10(abs(number)))
        case ast.Name(id=name) if "__" not in name:
            return 0.0
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _digits(operand)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return max(_digits(left), _digits(right)) + 1
        case ast.BinOp(left=left, op=ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Mod(), right=right):
            return _digits(left) + _digits(right)
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            return _power(_digits(exponent)) * max(_digits(base), 1.0)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _EXPONENTIALS:
            return _power(_digits(argument))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS and arguments:
            return max(map(_digits, arguments)) + 1
    raise ValueError


def _power(digits: float) -> float:
    if digits > math.log10(_DIGITS):
        raise ValueError  # more digits than are allowed, whatever the base
    return 10.0**digits


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where a block takes longer; outside the main thread, which alone gets signals, never."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no end within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)
