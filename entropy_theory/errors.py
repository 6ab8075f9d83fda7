"""One way to say that an input is wrong, that a run broke off, or that a file cannot be read or written."""

from __future__ import annotations

import errno
import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager

LARGEST_INTEGER = 2**31 - 1
DEVICE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE})
"""Errors of the machine; every other OSError is about a path that somebody gave."""


class InputError(ValueError):
    """An argument or a file of the user that cannot be used; the message names it."""


class MissingExtraError(ImportError):
    """An optional dependency that is not installed; the message names the extra to install."""


def invalid(name: str, expected: str, received: object) -> InputError:
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
    return InputError(f"{name}: expected {expected}, received {received}")


def at_least(config: object, least: int, *names: str) -> None:
    """Raise InputError for an integer of a configuration below a bound or beyond 32 bits; None passes.

    Example:
        >>> from types import SimpleNamespace
        >>> at_least(SimpleNamespace(steps=0), 1, "steps")
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: steps: expected an integer >= 1, received 0
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise invalid(name, f"an integer >= {least}", value)
        if value is not None and value > LARGEST_INTEGER:
            raise invalid(name, f"an integer <= {LARGEST_INTEGER}", value)


def finite_number(config: object, *names: str, zero: bool = False) -> None:
    """Raise InputError for a number of a configuration that is not finite and positive; None passes.

    Args:
        config: The configuration.
        *names: Its attributes.
        zero: Whether 0 is allowed.

    Example:
        >>> from types import SimpleNamespace
        >>> finite_number(SimpleNamespace(temperature=0.0), "temperature")
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: temperature: expected a finite number > 0, received 0.0
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise invalid(name, f"a finite number {'>=' if zero else '>'} 0", value)


def one_line(error: BaseException | str, limit: int = 200) -> str:
    r"""Write an exception's message on one line: control characters escaped, cut to a length.

    Example:
        >>> one_line(ValueError("no\n  such file \x1b[31m"))
        'no such file \\x1b[31m'
    """
    text = " ".join(str(error).split())
    if isinstance(error, BaseException) and not text:
        text = type(error).__name__
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def reading(name: str, expected: str, source: object) -> Iterator[None]:
    """Turn whatever a library raises over a foreign file into one InputError that names the file.

    Libraries raise anything from KeyError to their own kinds when a file is broken. RunError, a missing extra and an
    InputError, which already names something, pass as they are.

    Args:
        name: The argument through which the file came.
        expected: What would have been accepted.
        source: The file, folder or hub name.

    Example:
        >>> with reading("model", "a model", "broken/"):
        ...     {}["architectures"]
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: model: expected a model, received 'broken/' (KeyError: 'architectures')
    """
    try:
        yield
    except (InputError, MissingExtraError, RunError):
        raise
    except Exception as error:
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise invalid(name, expected, f"'{source}' ({kind}{one_line(error)})") from error


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Build the ImportError for an optional dependency, naming the extra to install.

    Example:
        >>> str(missing_extra("trl", "train"))
        "trl is not installed; install the extra: pip install 'entropy-theory[train]'"
    """
    return MissingExtraError(f"{package} is not installed; install the extra: pip install 'entropy-theory[{extra}]'")


class RunError(RuntimeError):
    """A run that began well and cannot continue: what happened, in one line.

    Args:
        message: What happened and where the run resumes.
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
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond the floats
            number = math.inf
        if (low < number if above else low <= number) and number <= high:
            return number
    raise invalid(name, f"a number in {'(' if above else '['}{low:g}, {high:g}]", repr(value))


class WriteError(RunError, OSError):
    """A file that could not be written: a full disk, a quota, a folder that vanished.

    Example:
        >>> str(WriteError("out/lens.json could not be written: No space left on device"))
        'out/lens.json could not be written: No space left on device'
    """
