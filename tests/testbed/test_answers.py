"""What a verifier that evaluates answers is asked about, and how long it may take."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from entropy_theory.testbed.answers import is_harmless, time_limit
from entropy_theory.testbed.tasks import load_task

HARMLESS = [
    "14",
    "-3.5e-7",
    "16.91°",
    "A B C",
    "_ Q _ _\n_ _ _ Q",
    "['A', 'B']",
    "[[0, 1], [1, 0]]",
    "(3 + 5)*(7 - 2)/4",
    "2*x**3 - x/7 + C",
    "exp(2*x)*sin(x) + log(x)**2 - sqrt(1 - 9*x**2)/3 + C",
    "3*Integral(x**3*cos(3*x), x) + C",
    "(x + 1)**100",
]
HARMFUL = [
    "__import__('os').system('true')",
    "open('x')",
    "f(1)",
    "(1).__class__",
    "sin('f()')",
    "sin(x, y=1)",
    "[f() for x in [1]]",
    "[1]*10**9",
    "lambda: f()",
    "9**9**9**9",
    "9**99999",
    "((9**99)**99)**99",
    "2**(10*9**5)",
    "exp(exp(exp(9)))",
    "factorial(10**9)",
    "(10**9)!",
    "1e999999999",
    "1E+9_999_999",
    "(" * 500 + "1" + ")" * 500,
]


@pytest.mark.parametrize("answer", HARMLESS)
def test_answers_that_may_be_evaluated(answer: str) -> None:
    assert is_harmless(answer)


@pytest.mark.parametrize("answer", HARMFUL)
def test_answers_that_may_not(answer: str) -> None:
    assert not is_harmless(answer)


def test_the_time_limit_ends_a_block_and_leaves_the_signal_as_it_was() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"no end within 0\.05 s"), time_limit(0.05):
        time.sleep(30)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_another_thread_has_no_limit() -> None:
    ended = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.05)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended


@pytest.mark.parametrize(
    "name", ["countdown", "puzzle24", "polynomial_multiplication", "simple_integration", "n_queens", "string_insertion"]
)
def test_no_completion_runs_as_code(name: str, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    task, file = load_task(name, 1, 0, chat=True), tmp_path / "made"
    code = f"__import__('pathlib').Path({str(file)!r}).touch()"
    logged: dict[str, float] = {}
    completions = [code, f"[{code}]", f"sin({code!r})", "9**9**9**9"]
    assert task(completions, row=[0] * 4, log_metric=logged.__setitem__) == [0.0] * 4
    assert logged["unreadable"] == 1.0
    assert not file.exists()
    assert task([task.prompts[0]["answer"]], row=[0]) == [1.0]
