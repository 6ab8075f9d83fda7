"""Tasks by name: prompts with a verifier as the reward, from reasoning-gym or of the project's own.

A task's specification is ``NAME`` or ``NAME:key=value,key=value``. Own tasks: ``sum``, ``arithmetic`` (in steps),
``addition``. Every other name is a dataset of reasoning-gym, whose difficulty parameters are passed through.

How an answer is read: the text inside the last ``<answer>…</answer>`` of the completion, and where there is none the
whole completion, without surrounding white space. The verifier of the task judges what was read; that of ``addition``
takes the last number in it, so that "8 + 6 = 14" is right. A verifier of reasoning-gym has ten seconds, and one that
evaluates what it judges is only asked about answers that are harmless (`answers.is_harmless`).
"""

from __future__ import annotations

import ast
import difflib
import inspect
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from entropy_theory.errors import invalid, missing_extra
from entropy_theory.testbed import arithmetic, sum_task
from entropy_theory.testbed.answers import is_harmless, time_limit

if TYPE_CHECKING:
    from datasets import Dataset

ANSWER_ONLY = "Answer with the final answer only."
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SPECIFICATION = re.compile(r"([A-Za-z][\w-]*)(?::(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_EVALUATES = re.compile(r"(?<![\w.])eval\(|\bsympy\b")
_SECONDS = 10.0  # of a foreign verifier; those that end take milliseconds
_TOO_LONG = 1000  # characters of an answer that no verifier is asked about

Verifier = Callable[[int, str], float]
"""Judges an answer to the prompt of a row: a reward, 1 for a right answer."""


@dataclass(frozen=True)
class Task:
    """Prompts and the reward that judges completions of them.

    Attributes:
        specification: What the task was made from.
        prompts: Columns ``prompt`` (a text, or a list of one message for chat models), ``row`` and ``answer``.
        verifier: Judges an answer.
    """

    specification: str
    prompts: Dataset
    verifier: Verifier

    # TRL names a reward by its function; a callable object needs a name of its own.
    @property
    def __name__(self) -> str:
        return parse_task(self.specification)[0]

    def __call__(self, completions: Sequence[Any], row: Sequence[int], **extra: Any) -> list[float]:
        """Reward in TRL's form.

        Besides, it logs per prompt, averaged over the prompts of the batch: ``distinct_right``, the number of distinct
        right answers; ``distinct``, the number of distinct answers; ``no_answer``, the share of empty ones; and
        ``unreadable``, the share of answers on which the verifier raised an error. Both count as wrong.

        Args:
            completions: Texts or conversations.
            row: The prompts' rows, a column of the dataset.
            **extra: What else TRL passes, among it ``log_metric``.
        """
        answers = [read_answer(text_of(completion)) for completion in completions]
        judged = [self._judge(place, answer) for place, answer in zip(row, answers, strict=True)]
        rewards = [0.0 if reward is None else reward for reward in judged]
        log = extra.get("log_metric")
        if log is not None:
            ordered = sorted(zip(row, answers, rewards, strict=True))
            groups = [list(group) for _, group in groupby(ordered, key=lambda triple: triple[0])]
            log("distinct_right", float(np.mean([len({a for _, a, r in g if r >= 1}) for g in groups])))
            log("distinct", float(np.mean([len({a for _, a, _ in g}) for g in groups])))
            log("no_answer", float(np.mean([not answer for answer in answers])))
            log("unreadable", float(np.mean([reward is None for reward in judged])))
        return rewards

    def _judge(self, row: int, answer: str) -> float | None:
        """The reward of an answer; None when the verifier cannot read it."""
        if not 0 < len(answer) <= _TOO_LONG:
            return 0.0
        try:
            return float(self.verifier(row, answer))
        except Exception:  # a verifier of somebody else's meets whatever a policy writes
            return None


def text_of(completion: Any) -> str:
    """Return the text of a completion, which TRL hands over as text or as a list of messages.

    Example:
        >>> text_of("12"), text_of([{"role": "assistant", "content": "12"}])
        ('12', '12')
    """
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def read_answer(text: str) -> str:
    r"""Read the answer out of a completion.

    Example:
        >>> read_answer("I think <answer> 12 </answer>"), read_answer(" 12\n")
        ('12', '12')
    """
    tagged = _TAGGED.findall(text)
    return (tagged[-1] if tagged else text).strip()


def parse_task(specification: str) -> tuple[str, dict[str, Any]]:
    """Split a specification into the task's name and its parameters.

    Values are Python literals; what is none is taken as a text.

    Raises:
        ValueError: The text has another form, or a parameter repeats.

    Example:
        >>> parse_task("chain_sum:min_terms=2,max_terms=(3),kind=easy")
        ('chain_sum', {'min_terms': 2, 'max_terms': 3, 'kind': 'easy'})
    """
    match = _SPECIFICATION.fullmatch(specification.strip())
    if match is None:
        raise invalid("task", "NAME or NAME:key=value,key=value", repr(specification))
    parameters: dict[str, Any] = {}
    for part in _split(match[2] or ""):
        name, separator, text = part.partition("=")
        if not separator or not name.strip().isidentifier() or name.strip() in parameters:
            raise invalid("task", "NAME:key=value,key=value, each key once", repr(specification))
        try:
            parameters[name.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parameters[name.strip()] = text.strip()
    return match[1], parameters


def _split(text: str) -> list[str]:
    """Cut at the commas outside brackets."""
    parts = re.split(r",(?![^(\[{]*[)\]}])", text)
    return [part for part in parts if part.strip()]


def load_task(specification: str, rows: int, seed: int, *, chat: bool) -> Task:
    """Build a task.

    Args:
        specification: ``NAME`` or ``NAME:key=value,...``.
        rows: Number of prompts.
        seed: Seed of the prompts.
        chat: Whether prompts are conversations, for a model whose tokenizer has a chat template; else plain texts.

    Raises:
        ValueError: There is no such task or parameter (the message lists near ones), or a value is out of range.
        ImportError: reasoning-gym is not installed.

    Example:
        >>> task = load_task("addition:largest=9", rows=2, seed=0, chat=True)
        >>> task.prompts[0]["prompt"][0]["content"]
        'What is 8 + 6? Answer with the number only.'
        >>> task(["14", "<answer>14</answer>", "8 + 6 = 14", "14 or 15"], row=[0, 0, 0, 0])
        [1.0, 1.0, 1.0, 0.0]
    """
    name, parameters = parse_task(specification)
    if rows < 1:
        raise invalid("rows", "an integer >= 1", rows)
    if name in _OWN:
        _check_parameters(name, parameters, _OWN[name][1])
        questions, answers, verifier = _OWN[name][0](rows, seed, chat, **parameters)
    else:
        questions, answers, verifier = _reasoning_gym(name, rows, seed, parameters)
    return Task(specification, _prompts(questions, answers, chat), verifier)


def task_names() -> tuple[str, ...]:
    """List the names of all tasks that can be loaded here: the project's own and, if installed, reasoning-gym's."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return tuple(sorted(_OWN))
    return tuple(sorted({*_OWN, *DATASETS} - {"composite"}))


Parts = tuple[list[str], list[str], Verifier]
"""Questions, reference answers, verifier."""


def _sum(rows: int, seed: int, chat: bool) -> Parts:
    targets = sum_task.dataset(rows, seed)["target"]
    ask = "Write four digits joined by plus signs whose sum is {}, and nothing else."
    questions = [ask.format(target) if chat else sum_task.prompt(target) for target in targets]
    examples = ["+".join(map(str, sum_task.right_answers(target)[0])) for target in targets]
    return questions, examples, lambda row, answer: float(sum_task.is_right(targets[row], answer))


def _arithmetic(rows: int, seed: int, chat: bool, numbers: int = 5, largest: int = 20) -> Parts:
    _check_integer("arithmetic numbers", numbers, 2, 100)
    _check_integer("arithmetic largest", largest, 2)
    expressions = arithmetic.dataset(rows, seed, numbers, largest)["expression"]
    ask = "Rewrite {} step by step into one number, such as 3+20-6=23-6=17 for 3+4*5-6. Write only the steps."
    questions = [ask.format(expression) if chat else expression + "=" for expression in expressions]
    generator = np.random.default_rng(seed)
    examples = [arithmetic.derive(expression, generator) for expression in expressions]
    return questions, examples, lambda row, answer: float(arithmetic.is_right(expressions[row], answer))


def _check_integer(name: str, value: Any, least: int, most: int = 10**9) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise invalid(name, f"an integer from {least} to {most}", repr(value))


def _addition(rows: int, seed: int, chat: bool, largest: int = 14) -> Parts:
    _check_integer("addition largest", largest, 1)
    pairs = np.random.default_rng(seed).integers(1, largest + 1, (rows, 2)).tolist()
    questions = [f"What is {a} + {b}? Answer with the number only." if chat else f"{a}+{b}=" for a, b in pairs]
    totals = [str(a + b) for a, b in pairs]

    def verifier(row: int, answer: str) -> float:
        return float([number.replace(",", "") for number in _NUMBER.findall(answer)[-1:]] == [totals[row]])

    return questions, totals, verifier


_OWN: Mapping[str, tuple[Callable[..., Parts], tuple[str, ...]]] = {
    "sum": (_sum, ()),
    "arithmetic": (_arithmetic, ("numbers", "largest")),
    "addition": (_addition, ("largest",)),
}


def _reasoning_gym(name: str, rows: int, seed: int, parameters: Mapping[str, Any]) -> Parts:
    names = task_names()
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        if near:  # of the project's own
            raise invalid("task", f"one of {', '.join(names)}, or with reasoning-gym another", repr(name)) from None
        raise missing_extra("reasoning_gym", "llm") from None
    if name not in names:
        raise invalid("task", f"one of {len(names)} names, such as {', '.join(near or _OWN)}", repr(name))
    settings = DATASETS[name][1]
    known = tuple(f.name for f in fields(settings)) if is_dataclass(settings) else ()
    _check_parameters(name, parameters, tuple(k for k in known if k not in ("seed", "size")))
    try:
        with _seeded(seed):
            made = reasoning_gym.create_dataset(name, size=rows, seed=seed, **parameters)
            entries = [made[row] for row in range(rows)]
    except (AssertionError, ValueError, TypeError, IndexError, KeyError) as error:
        raise invalid(f"task {name}", "parameters that it can be made with", f"{dict(parameters)} ({error})") from None

    evaluates = any(_EVALUATES.search(inspect.getsource(module)) for module in _modules(type(made)))

    def verifier(row: int, answer: str) -> float:
        if evaluates and not is_harmless(answer):
            raise ValueError("an answer that would run as code")
        with time_limit(_SECONDS):
            return float(made.score_answer(answer, entries[row]))

    questions = [f"{entry['question']}\n{ANSWER_ONLY}" for entry in entries]
    return questions, [str(entry["answer"]) for entry in entries], verifier


def _modules(made: type) -> Iterator[ModuleType]:
    """The modules of reasoning-gym that a dataset's class and its bases are defined in."""
    for base in made.__mro__:
        if base.__module__.startswith("reasoning_gym.") and not base.__module__.startswith("reasoning_gym.factory"):
            yield sys.modules[base.__module__]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's own generator, which some datasets draw from beside theirs, and put it back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _check_parameters(name: str, parameters: Mapping[str, Any], known: Sequence[str]) -> None:
    for parameter in parameters:
        if parameter not in known:
            near = difflib.get_close_matches(parameter, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            expected = f"one of {', '.join(known)}" if known else "no parameters"
            raise invalid(f"task {name} parameter", expected, repr(parameter) + hint)


def _prompts(questions: Sequence[str], answers: Sequence[str], chat: bool) -> Dataset:
    from datasets import Dataset

    prompts = [[{"role": "user", "content": text}] for text in questions] if chat else list(questions)
    return Dataset.from_dict({"prompt": prompts, "row": list(range(len(questions))), "answer": list(answers)})
