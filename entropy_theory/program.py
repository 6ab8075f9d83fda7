"""What programs do at their edges: options become a configuration, errors become a line and a status."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import tyro

from entropy_theory.errors import DEVICE_ERRORS, InputError, MissingExtraError, RunError, invalid, one_line
from entropy_theory.ranks import PARENT_VARIABLE, leave_ranks

if TYPE_CHECKING:
    from rich.console import Console

C = TypeVar("C")

DEBUG_OPTION = "--debug"
DEBUG_VARIABLE = "ENTROPY_THEORY_DEBUG"


def run_script(main: Callable[[C], object], config: type[C]) -> NoReturn:
    """Run a script from its command line, within the boundary of `bounded`, and end the process with its status.

    Args:
        main: What the script does with its configuration.
        config: The dataclass of its options.
    """
    program = Path(sys.argv[0]).name

    def parse_and_run(words: Sequence[str]) -> int:
        parsed = parse_options(config, program, words)
        if parsed is not None:
            main(parsed)
        return 0

    sys.exit(bounded(parse_and_run, sys.argv[1:], program))


def bounded(run: Callable[[Sequence[str]], int], words: Sequence[str], program: str) -> int:
    """Run a program and return its status; whatever it raises ends here, in one line on standard error.

    ``--debug`` anywhere among the words, or the variable ENTROPY_THEORY_DEBUG, shows the traceback instead.
    """
    debug = DEBUG_OPTION in words or bool(os.environ.get(DEBUG_VARIABLE))
    words = [word for word in words if word != DEBUG_OPTION]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the program, as `>&-` does
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  (open until the end)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Δ or ± shows a question mark
    try:
        return run(words)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command resumes from the last checkpoint", 130, program)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            raise
        return _fail(_message(error), _status(error), program)
    finally:
        leave_ranks(together=False)  # after an error; a run that ends well has left before


def _message(error: Exception) -> str:
    """Describe an error in a line: our own say all there is, others by their kind, and by the file if there is one."""
    if isinstance(error, InputError | MissingExtraError | RunError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or type(error).__name__}"
    return f"{type(error).__name__}: {error} ({DEBUG_OPTION} shows where)"


def _status(error: Exception) -> int:
    """Status 2 for what somebody gave, 1 for what happened on the way."""
    if isinstance(error, RunError):
        return error.status
    if isinstance(error, OSError):
        return 1 if error.errno in DEVICE_ERRORS else 2
    return 2 if isinstance(error, ValueError | ImportError) else 1


def check_folder(folder: Path, name: str = "out") -> None:
    """Refuse a folder that cannot be made or written, before any work; the name is the option that it comes from."""
    existing = next(path for path in (folder, *folder.parents, Path()) if os.path.lexists(path))
    if any(len(os.fsencode(part)) > 255 for part in folder.parts):
        fault = "a name of it is longer than 255 bytes"
    elif not existing.is_dir():
        fault = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        fault = f"{existing} is read-only"
    else:
        return
    raise invalid(name, "a folder that can be written", f"{str(folder)[:80]} ({fault})")


def parse_options(config: type[C], program: str, words: Sequence[str], **settings: Any) -> C | None:
    """Build a configuration from command-line words; None when help was printed.

    Args:
        config: A dataclass.
        program: The name that help shows.
        words: The options.
        **settings: Further arguments of ``tyro.cli``.

    Raises:
        ValueError: An option is unknown or its value is wrong, in one line.
    """
    columns = os.environ.get("COLUMNS")
    width = shutil.get_terminal_size().columns
    wants_help = any(word in ("-h", "--help") for word in words)
    stderr = io.StringIO()
    try:
        # tyro never ends in a few columns, and folds its errors in the middle of words
        os.environ["COLUMNS"] = str(max(width, 40) if wants_help else 200)
        with contextlib.nullcontext() if wants_help else contextlib.redirect_stderr(stderr):
            args = ["--help"] if wants_help else list(words)
            return tyro.cli(config, prog=program, args=args, config=(tyro.conf.FlagCreatePairsOff,), **settings)
    except SystemExit as stop:
        if stop.code in (0, None):
            return None
        command = program.partition(" ")[2]
        said = _first_words(stderr.getvalue()) or "wrong options"
        raise InputError(f"{command}: {said}" if command else said) from None
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def _first_words(box: str) -> str:
    """Read what an error box of tyro says, without its title, its frame and its hints at further help."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]
    bare = [re.sub(r"^[│|]?\s*|\s*[│|]?$", "", line) for line in lines]

    def is_rule(line: str) -> bool:
        return not re.search(r"\w", line)

    said = " ".join(takewhile(lambda line: not is_rule(line), dropwhile(is_rule, bare)))
    return re.sub(r"^Error parsing (?:\w+Config: )?", "", said)


def end_with_parent() -> None:
    """End this process when the one that started it for a part of its work is gone, however it went."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.2)
        os._exit(1)  # as after a kill: checkpoints are whole or absent, so nothing needs tidying

    threading.Thread(target=watch, daemon=True).start()


def _fail(message: str, status: int, program: str) -> int:
    print(f"{program}: {one_line(message, 800)}", file=sys.stderr)
    return status


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """Show one bar; gives the callback (done, total, words) that moves it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, words: bar.update(task, completed=done, total=total, description=words)
