"""One way to say that an input is wrong."""

from __future__ import annotations

import math


def invalid(name: str, expected: str, received: object) -> ValueError:
    """Build the ValueError for a bad argument: its name, what was expected, what came.

    Args:
        name: The argument as the caller spells it.
        expected: What would have been accepted.
        received: What came instead.

    Returns:
        The exception, for the caller to raise.

    Example:
        >>> str(invalid("temperature", "a number > 0", 0.0))
        'temperature: expected a number > 0, received 0.0'
    """
    return ValueError(f"{name}: expected {expected}, received {received}")


def at_least(config: object, least: int, *names: str) -> None:
    """Raise ValueError for an integer of a configuration that is below a bound; None passes.

    Example:
        >>> from types import SimpleNamespace
        >>> at_least(SimpleNamespace(steps=0), 1, "steps")
        Traceback (most recent call last):
        ...
        ValueError: steps: expected an integer >= 1, received 0
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise invalid(name, f"an integer >= {least}", value)


def finite_number(config: object, *names: str, zero: bool = False) -> None:
    """Raise ValueError for a number of a configuration that is not finite and positive; None passes.

    Args:
        config: The configuration.
        *names: Its attributes.
        zero: Whether 0 is allowed.

    Example:
        >>> from types import SimpleNamespace
        >>> finite_number(SimpleNamespace(temperature=0.0), "temperature")
        Traceback (most recent call last):
        ...
        ValueError: temperature: expected a finite number > 0, received 0.0
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise invalid(name, f"a finite number {'>=' if zero else '>'} 0", value)


def one_line(error: BaseException, limit: int = 200) -> str:
    r"""Write an exception's message on one line, cut to a length.

    Example:
        >>> one_line(ValueError("no\n  such file"))
        'no such file'
    """
    return " ".join(str(error).split())[:limit]


def missing_extra(package: str, extra: str) -> ImportError:
    """Build the ImportError for an optional dependency, naming the extra to install.

    Example:
        >>> str(missing_extra("trl", "train"))
        "trl is not installed; install the extra: pip install 'entropy-theory[train]'"
    """
    return ImportError(f"{package} is not installed; install the extra: pip install 'entropy-theory[{extra}]'")


class RunError(RuntimeError):
    """A run that began well and cannot go on: what happened, in one line.

    Args:
        message: What happened and where the run can be taken up.
        status: Exit status of the command line.

    Example:
        >>> str(RunError("loss: nan at step 7")), RunError("stopped by SIGTERM", status=143).status
        ('loss: nan at step 7', 143)
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
