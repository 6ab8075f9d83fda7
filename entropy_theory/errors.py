"""One way to say that an input is wrong."""

from __future__ import annotations

import numbers


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


def number_in(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """Check that an argument is a number in [low, high], or (low, high] when `above`, and return it as a float.

    Any real number is accepted, NumPy's scalars too; NaN, infinities and truth values are not.

    Raises:
        ValueError: It is another thing, or out of range.

    Example:
        >>> number_in("temperature", 2, 0.0, 10.0, above=True)
        2.0
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if real and (low < value if above else low <= value) and value <= high:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise invalid(name, f"a number in {'(' if above else '['}{low:g}, {high:g}]", repr(value))
