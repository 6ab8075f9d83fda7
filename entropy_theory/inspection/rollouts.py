"""Recorded rollouts: read from JSON lines or from TRL's completion log, and compared within groups."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entropy_theory.control.group_advantages import ScaleRewards, ragged_group_advantages
from entropy_theory.errors import invalid, missing_extra, one_line, reading
from entropy_theory.inspection.reward_columns import REWARD, RewardColumns, choose_reward_columns
from entropy_theory.rewards import reward_number
from entropy_theory.sampling import Sampling

_LOG_NAME = re.compile(r"completions_(\d+)\.parquet")
_NOT_REWARDS = {"step", "advantage", "group", "truncated"}
_FIELDS = {"prompt", "completion", "group", "advantage", "truncated", "prompt_ids", "completion_ids"}
_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Rollout:
    """One completion and what was recorded about it.

    Attributes:
        prompt: Text, or a list of chat messages.
        completion: Text; None where only token ids say what was sampled.
        reward: Its reward; None where a log has none for it.
        group: The prompt group it was compared in.
        advantage: A as it was recorded, or None.
        truncated: Whether it stopped at a length limit, so that no end token followed; None where not recorded.
        prompt_ids: The prompt's tokens, where recorded.
        completion_ids: The completion's tokens, where recorded.
        place: Where it stands, for messages.
    """

    prompt: str | list[dict[str, Any]]
    completion: str | None
    reward: float | None
    group: str
    advantage: float | None
    truncated: bool | None
    prompt_ids: tuple[int, ...] | None
    completion_ids: tuple[int, ...] | None
    place: str


@dataclass(frozen=True)
class Rollouts:
    """All rollouts of a file.

    Attributes:
        items: The rollouts, in file order.
        source: The file.
        grouped_by: "group", the recorded field, or "prompt": equal prompts make a group.
        rewards: The columns whose weighted sum is the reward, and the evidence for them.
        sampling: What the log says about the sampling.
        left_out: Why some rollouts of the file are not among the items, with counts.
    """

    items: tuple[Rollout, ...]
    source: str
    grouped_by: str
    rewards: RewardColumns = REWARD
    sampling: Sampling = field(default_factory=Sampling)
    left_out: tuple[str, ...] = ()

    @property
    def group_ids(self) -> np.ndarray:
        """Integers from 0, in order of appearance."""
        seen: dict[str, int] = {}
        return np.array([seen.setdefault(item.group, len(seen)) for item in self.items])


def read_rollouts(
    path: Path, *, step: int | None = None, rewards: Sequence[str] = (), reward_weights: Sequence[float] = ()
) -> Rollouts:
    """Read rollouts from JSON lines, a parquet file, or the folder of a TRL run with ``log_completions``.

    A JSON line has ``prompt`` (text or chat messages), ``completion`` (text or one assistant message), ``reward``, and
    may have ``group``, ``advantage``, ``truncated``, ``prompt_ids`` and ``completion_ids``. A parquet row of TRL's log
    has ``prompt``, ``completion``, ``advantage`` and one column for each reward function. A completion of several
    messages, as of a run with tools, can be read by its ids only; without them it is left out and counted.

    Args:
        path: File or folder; of a folder's logs the newest is read.
        step: The step to read from a folder instead.
        rewards: Columns of a parquet file whose weighted sum is the reward; default: see `choose_reward_columns`.
        reward_weights: The weight of each of them; default: 1.

    Raises:
        ValueError: No such file, not a form named above, no rollouts, or a line that is malformed or lacks a field;
            the message has its number.
        ImportError: Parquet needs pyarrow (extra ``train``).
    """
    if path.is_dir():
        path = _log_in(path, step)
    elif step is not None:
        raise invalid("step", "a folder of logs to choose it from", path)
    if not path.is_file():
        raise invalid("rollouts", "a .jsonl or .parquet file, or the folder of a run with logged completions", path)
    sampling = Sampling.read(path.parent)
    columns = REWARD
    if path.suffix == ".parquet":
        rows, columns = _parquet(path, rewards, reward_weights, sampling)
    elif path.suffix in (".jsonl", ".json"):
        if rewards or reward_weights:
            raise invalid("rewards", "a parquet file to choose columns of", path)
        rows = list(_json_lines(path))
    else:
        raise invalid("rollouts", "a file ending in .jsonl or .parquet", path)
    if not rows:
        raise invalid("rollouts", "at least one rollout", f"{path} with none")
    by = "group" if all("group" in row for _, row in rows) else "prompt"
    items = [_rollout(place, row, by, path.suffix == ".parquet") for place, row in rows]
    with_advantage = sum(item.advantage is not None for item in items)
    if 0 < with_advantage < len(items):
        missing = next(item.place for item in items if item.advantage is None)
        raise invalid(missing, "an advantage, as other lines have", "none")
    kept = tuple(item for item in items if item.completion is not None or item.completion_ids is not None)
    if not kept:
        raise invalid(f"{items[0].place}, completion", "text or one assistant message, or completion_ids", "neither")
    several = f"{len(items) - len(kept)} of {len(items)} completions of several messages and without token ids"
    left_out = () if len(kept) == len(items) else (several,)
    return Rollouts(kept, str(path), by, columns, sampling, left_out)


def _log_in(folder: Path, step: int | None) -> Path:
    places = [folder, folder / "completions", folder / "trainer" / "completions"]
    logs = {int(m[1]): p for place in places for p in place.glob("*.parquet") if (m := _LOG_NAME.fullmatch(p.name))}
    if not logs:
        raise invalid(
            "rollouts", "a folder with completions_STEP.parquet, as TRL's log_completions writes them", folder
        )
    if step is not None and step not in logs:
        raise invalid("step", f"one of the logged steps {min(logs)} to {max(logs)}", step)
    return logs[max(logs) if step is None else step]


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not read_lines of the records: that one forgives a last line cut short, which here is a broken file.
    with reading("rollouts", "text in UTF-8", path), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                line.encode().decode()
                json.dumps(row, ensure_ascii=False).encode()  # escapes may hold half of a character
            except (ValueError, RecursionError) as error:
                raise invalid(place, "a JSON object of Unicode text", one_line(error)) from None
            if not isinstance(row, dict):
                raise invalid(place, "a JSON object", type(row).__name__)
            yield place, row


def _parquet(
    path: Path, rewards: Sequence[str], weights: Sequence[float], sampling: Sampling
) -> tuple[list[tuple[str, dict[str, Any]]], RewardColumns]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "train") from None
    with reading("rollouts", "a parquet file", path):
        table = pyarrow.parquet.read_table(path)
        numeric = [
            f.name
            for f in table.schema
            if f.name not in _NOT_REWARDS and (pyarrow.types.is_floating(f.type) or pyarrow.types.is_integer(f.type))
        ]
        # Only what is read: a column of dates or objects may not be representable in Python.
        rows = table.select([name for name in table.column_names if name in _FIELDS or name in numeric]).to_pylist()
    for number, row in enumerate(rows, start=1):
        if "prompt" not in row or "completion" not in row:
            raise invalid(f"{path}, row {number}", "the columns prompt and completion", ", ".join(row) or "none")
        row["prompt"] = _plain_messages(row["prompt"])
    # TRL writes NaN for a reward function that did not apply; a row that has no other has no reward.
    values = {name: np.array([math.nan if row[name] is None else float(row[name]) for row in rows]) for name in numeric}
    advantages = [row.get("advantage") for row in rows]
    chosen = choose_reward_columns(
        values,
        str(path),
        rewards or sampling.reward_columns or (),
        weights or ([] if rewards else sampling.reward_weights or []),
        None if None in advantages else np.array(advantages, dtype=float),
        [json.dumps(row["group"] if "group" in row else row["prompt"], default=str) for row in rows],
    )
    total = chosen.total(values)
    for row, reward in zip(rows, total, strict=True):
        row["reward"] = None if math.isnan(reward) else float(reward)
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)], chosen


def _plain_messages(prompt: Any) -> Any:
    """Drop the empty entries that parquet fills in where other messages have a field."""
    if not isinstance(prompt, list):
        return prompt
    return [{k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in prompt]


def _rollout(place: str, row: Mapping[str, Any], grouped_by: str, logged: bool) -> Rollout:
    missing = [name for name in ("prompt", "completion", "reward") if name not in row]
    if missing:
        raise invalid(place, "the fields prompt, completion and reward", f"no {' and no '.join(missing)}")
    prompt, completion = row["prompt"], row["completion"]
    chat = isinstance(prompt, list) and prompt and all(isinstance(m, dict) and "role" in m for m in prompt)
    if not (isinstance(prompt, str) or chat):
        raise invalid(f"{place}, prompt", "text or a list of chat messages", _short(prompt))
    if not isinstance(completion, str | list):
        raise invalid(f"{place}, completion", "text or one assistant message", _short(completion))
    if isinstance(completion, list) and not all(isinstance(m, dict) for m in completion):
        raise invalid(f"{place}, completion", "text or one assistant message", _short(completion))
    truncated = row.get("truncated")
    if truncated is not None and not isinstance(truncated, bool):
        raise invalid(f"{place}, truncated", "true or false", _short(truncated))
    reward, advantage = row["reward"], row.get("advantage")
    if reward is not None or not logged:
        reward = _number(f"{place}, reward", reward)
    group = row["group"] if grouped_by == "group" else prompt
    return Rollout(
        prompt=prompt,
        completion=completion if isinstance(completion, str) else _text_of(completion),
        reward=reward,
        group=group if isinstance(group, str) else json.dumps(group, sort_keys=True, ensure_ascii=False),
        advantage=None if advantage is None else _number(f"{place}, advantage", advantage),
        truncated=truncated,
        prompt_ids=_ids(f"{place}, prompt_ids", row.get("prompt_ids"), least=1),
        completion_ids=_ids(f"{place}, completion_ids", row.get("completion_ids"), least=0),
        place=place,
    )


def _text_of(messages: list[dict[str, Any]]) -> str | None:
    """The text of the chat form of TRL, one assistant message; None for several messages, or one that is no text."""
    content = messages[0].get("content") if len(messages) == 1 and not messages[0].get("tool_calls") else None
    if isinstance(content, list) and content and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else None


def _number(name: str, value: object) -> float:
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        number = reward_number(value)
        assert number is not None
        return number
    except ValueError:
        raise invalid(name, "a finite number", _short(value)) from None


def _ids(name: str, value: object, least: int) -> tuple[int, ...] | None:
    if value is None:
        return None
    is_ids = isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _LARGEST_ID for v in value
    )
    if not is_ids or not isinstance(value, list) or len(value) < least:
        raise invalid(name, "a list of token ids", _short(value))
    return tuple(value)


def _short(value: object) -> str:
    return one_line(repr(value), 80)


def advantages_of(rollouts: Rollouts, scale: ScaleRewards = "group") -> tuple[np.ndarray, bool]:
    """Take the recorded advantages, or compute them from the rewards as TRL's GRPO does (`ragged_group_advantages`).

    Args:
        rollouts: The rollouts.
        scale: What the rewards' deviation is taken over; of no effect on recorded advantages.

    Returns:
        A, float64, one per rollout, and whether they were recorded. A rollout that is alone in its group, or has no
        reward, gets 0.

    Raises:
        ValueError: Another scale, or nothing to compare: every group has one rollout, or rewards are missing.

    Example:
        >>> def rollout(reward):
        ...     return Rollout("17=", "9+0+1+7", reward, "17=", None, False, None, None, "line 1")
        >>> advantages_of(Rollouts((rollout(1.0), rollout(0.0)), "x.jsonl", "prompt"), "none")
        (array([ 0.5, -0.5]), False)
    """
    if all(item.advantage is not None for item in rollouts.items):
        return np.array([item.advantage for item in rollouts.items], dtype=np.float64), True
    rewards = np.array([math.nan if item.reward is None else item.reward for item in rollouts.items])
    known, groups = ~np.isnan(rewards), rollouts.group_ids
    if not known.any():
        raise invalid("rewards", "at least one reward", f"{rollouts.source} with none")
    if np.bincount(groups[known]).max() < 2:
        raise invalid(
            "rollouts",
            "groups of at least two completions (equal prompts, or a field group), or advantages",
            f"{len(rewards)} completions of {groups.max() + 1} {rollouts.grouped_by}s",
        )
    return ragged_group_advantages(rewards, groups, scale), False
