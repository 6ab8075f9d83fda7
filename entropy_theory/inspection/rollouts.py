"""Recorded rollouts: read from JSON lines or from TRL's completion log, compared within groups, cut into tokens."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from entropy_theory.errors import invalid, missing_extra

ScaleRewards = Literal["group", "batch", "none"]
STD_OFFSET = 1e-4
"""Added to the standard deviation of the rewards, as TRL does."""

_LOG_NAME = re.compile(r"completions_(\d+)\.parquet")
_NOT_REWARDS = {"step", "advantage"}


@dataclass(frozen=True)
class Rollout:
    """One completion and what was recorded about it.

    Attributes:
        prompt: Text, or a list of chat messages.
        completion: Text.
        reward: Its reward; None where a log has none for it.
        group: The prompt group it was compared in.
        advantage: A as it was recorded, or None.
        truncated: Whether it stopped at a length limit, so that no end token followed.
        prompt_ids: The prompt's tokens, where recorded.
        completion_ids: The completion's tokens, where recorded.
        place: Where it stands, for messages.
    """

    prompt: str | list[dict[str, Any]]
    completion: str
    reward: float | None
    group: str
    advantage: float | None
    truncated: bool
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
        rewards: The columns whose sum is the reward.
    """

    items: tuple[Rollout, ...]
    source: str
    grouped_by: str
    rewards: tuple[str, ...]

    @property
    def group_ids(self) -> np.ndarray:
        """Integers from 0, in order of appearance."""
        seen: dict[str, int] = {}
        return np.array([seen.setdefault(item.group, len(seen)) for item in self.items])


def read_rollouts(path: Path, *, step: int | None = None, rewards: Sequence[str] = ()) -> Rollouts:
    """Read rollouts from JSON lines, a parquet file, or the folder of a TRL run with ``log_completions``.

    A JSON line has ``prompt`` (text or chat messages), ``completion`` (text or one assistant message), ``reward``, and
    may have ``group``, ``advantage``, ``truncated``, ``prompt_ids`` and ``completion_ids``. A parquet row of TRL's log
    has ``prompt``, ``completion``, ``advantage`` and one column for each reward function.

    Args:
        path: File or folder; of a folder's logs the newest is read.
        step: The step to read from a folder instead.
        rewards: Columns of a parquet file whose sum is the reward; default: every numeric one that is not known to be
            something else.

    Raises:
        ValueError: No such file, not a form named above, no rollouts, or a line that is malformed or lacks a field;
            the message has its number.
        ImportError: Parquet needs pandas and pyarrow (extra ``train``).
    """
    if path.is_dir():
        path = _log_in(path, step)
    elif step is not None:
        raise invalid("step", "a folder of logs to choose it from", path)
    if not path.is_file():
        raise invalid("rollouts", "a .jsonl or .parquet file, or the folder of a run with logged completions", path)
    logged = path.suffix == ".parquet"
    if logged:
        names, rows = _parquet(path, rewards)
    elif path.suffix in (".jsonl", ".json"):
        if rewards:
            raise invalid("rewards", "a parquet file to choose columns of", path)
        names, rows = ("reward",), _json_lines(path)
    else:
        raise invalid("rollouts", "a file ending in .jsonl or .parquet", path)
    found = list(rows)
    if not found:
        raise invalid("rollouts", "at least one rollout", f"{path} with none")
    by = "group" if all("group" in row for _, row in found) else "prompt"
    items = tuple(_rollout(place, row, by, logged) for place, row in found)
    with_advantage = sum(item.advantage is not None for item in items)
    if 0 < with_advantage < len(items):
        missing = next(item.place for item in items if item.advantage is None)
        raise invalid(missing, "an advantage, as other lines have", "none")
    return Rollouts(items, str(path), by, names)


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
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise invalid(f"{path}, line {number}", "a JSON object", str(error)) from None
                if not isinstance(row, dict):
                    raise invalid(f"{path}, line {number}", "a JSON object", type(row).__name__)
                yield f"{path}, line {number}", row
        except UnicodeDecodeError as error:
            raise invalid(str(path), "text in UTF-8", str(error)) from None


def _parquet(path: Path, rewards: Sequence[str]) -> tuple[tuple[str, ...], Iterator[tuple[str, dict[str, Any]]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "train") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise invalid("rollouts", "a parquet file", f"{path} ({' '.join(str(error).split())[:150]})") from None
    numeric = [
        f.name
        for f in table.schema
        if f.name not in _NOT_REWARDS and (pyarrow.types.is_floating(f.type) or pyarrow.types.is_integer(f.type))
    ]
    names = tuple(rewards) or (("reward",) if "reward" in numeric else tuple(n for n in numeric if n != "group"))
    unknown = [name for name in names if name not in numeric]
    if unknown or not names:
        raise invalid("rewards", f"numeric columns of {path}", ", ".join(unknown) or "none there")

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(table.to_pylist(), start=1):
            # TRL writes NaN for a reward function that did not apply; a row that has no other has no reward.
            known = [row[name] for name in names if row[name] is not None and math.isfinite(row[name])]
            yield f"{path}, row {number}", {**row, "reward": sum(known) if known else None}

    return names, rows()


def _rollout(place: str, row: Mapping[str, Any], grouped_by: str, logged: bool) -> Rollout:
    missing = [name for name in ("prompt", "completion", "reward") if name not in row]
    if missing:
        raise invalid(place, "the fields prompt, completion and reward", f"no {' and no '.join(missing)}")
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(completion, list):  # the chat form of TRL: one assistant message
        texts = [m.get("content") for m in completion if isinstance(m, dict)]
        completion = texts[0] if len(texts) == 1 == len(completion) else completion
    chat = isinstance(prompt, list) and prompt and all(isinstance(m, dict) and "role" in m for m in prompt)
    if not (isinstance(prompt, str) or chat):
        raise invalid(f"{place}, prompt", "text or a list of chat messages", _short(prompt))
    if not isinstance(completion, str):
        raise invalid(f"{place}, completion", "text or one assistant message", _short(completion))
    reward = row["reward"]
    if reward is not None or not logged:
        reward = _number(f"{place}, reward", reward)
    advantage = row.get("advantage")
    group = row["group"] if grouped_by == "group" else prompt
    return Rollout(
        prompt=prompt,
        completion=completion,
        reward=reward,
        group=group if isinstance(group, str) else json.dumps(group, sort_keys=True, ensure_ascii=False),
        advantage=None if advantage is None else _number(f"{place}, advantage", advantage),
        truncated=bool(row.get("truncated", False)),
        prompt_ids=_ids(f"{place}, prompt_ids", row.get("prompt_ids")),
        completion_ids=_ids(f"{place}, completion_ids", row.get("completion_ids")),
        place=place,
    )


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise invalid(name, "a finite number", _short(value))
    return float(value)


def _ids(name: str, value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value):
        raise invalid(name, "a list of token ids", _short(value))
    return tuple(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def advantages_of(rollouts: Rollouts, scale: ScaleRewards = "group") -> tuple[np.ndarray, bool]:
    """Take the recorded advantages, or compute them from the rewards as TRL's GRPO does.

    GRPO (arXiv 2402.03300):  A_j = (R_j − R̄)/(σ + 1e-4), with R̄ the mean of the group and σ the sample standard
    deviation of the group (G − 1 in the denominator), of all rewards ("batch"), or left out ("none").

    Args:
        rollouts: The rollouts.
        scale: What σ is taken over; of no effect on recorded advantages.

    Returns:
        A, float64, one per rollout, and whether they were recorded. A rollout that is alone in its group, or has no
        reward, gets 0.

    Raises:
        ValueError: Another scale, or nothing to compare: every group has one rollout, or rewards are missing.

    Example:
        >>> def rollout(reward):
        ...     return Rollout("17=", "9+0+1+7", reward, "17=", None, False, None, None, "line 1")
        >>> advantages_of(Rollouts((rollout(1.0), rollout(0.0)), "x.jsonl", "prompt", ("reward",)), "none")
        (array([ 0.5, -0.5]), False)
    """
    if scale not in get_args(ScaleRewards):
        raise invalid("scale_rewards", f"one of {', '.join(get_args(ScaleRewards))}", repr(scale))
    if all(item.advantage is not None for item in rollouts.items):
        return np.array([item.advantage for item in rollouts.items], dtype=np.float64), True
    rewards = np.array([math.nan if item.reward is None else item.reward for item in rollouts.items])
    if np.isnan(rewards).all():
        raise invalid("rewards", "at least one reward", f"{rollouts.source} with none")
    groups, known = rollouts.group_ids, ~np.isnan(rewards)
    count = np.bincount(groups[known], minlength=groups.max() + 1)
    if count.max() < 2:
        raise invalid(
            "rollouts",
            "groups of at least two completions (equal prompts, or a field group), or advantages",
            f"{len(rewards)} completions of {len(count)} {rollouts.grouped_by}s",
        )
    size = np.maximum(count, 1)
    centred = np.where(known, rewards - (np.bincount(groups[known], rewards[known], count.size) / size)[groups], 0.0)
    if scale == "none":
        return centred, False
    if scale == "batch":
        return centred / (rewards[known].std(ddof=1) + STD_OFFSET), False
    sigma = np.sqrt(np.bincount(groups, centred**2, count.size) / np.maximum(count - 1, 1))
    return centred / (sigma[groups] + STD_OFFSET), False


@dataclass(frozen=True)
class Tokenised:
    """A rollout in tokens.

    Attributes:
        prompt_ids: The prompt's tokens, at least one.
        ids: The completion's tokens.
        pieces: The text of each; "" where a token continues the character of the one before.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    pieces: tuple[str, ...]


def tokenise(
    rollouts: Rollouts, tokenizer: Any, *, end_token: bool = True, max_completion_length: int | None = None
) -> list[Tokenised]:
    """Cut prompts and completions into tokens as TRL does; a completion must come back from its tokens unchanged.

    Logged text has lost the end token, which is part of what was learned from, so that it is put back, except after
    completions that are marked as truncated or have the greatest allowed length. Recorded ids are taken as they are.

    Args:
        rollouts: The rollouts.
        tokenizer: The model's tokenizer.
        end_token: Put the end token back.
        max_completion_length: The length limit of the sampling, in tokens, where known.

    Raises:
        ValueError: A completion does not come back, a chat has no template, or a prompt has no tokens.
    """
    end = tokenizer.eos_token_id
    single = _Pieces(tokenizer)
    prompts: dict[str, tuple[int, ...]] = {}
    done = []
    for item in rollouts.items:
        key = item.prompt if isinstance(item.prompt, str) else json.dumps(item.prompt)
        if item.prompt_ids is None and key not in prompts:
            prompts[key] = _prompt_ids(item, tokenizer)
        prompt = item.prompt_ids or prompts.get(key, ())
        if not prompt:
            raise invalid(f"{item.place}, prompt", "at least one token", _short(item.prompt))
        if item.completion_ids is not None:
            done.append(Tokenised(prompt, item.completion_ids, single.pieces(item.completion_ids, None)))
            continue
        # without a maximum the tokenizer warns of long texts on standard error
        encoded = tokenizer(item.completion, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
        ids = tuple(encoded["input_ids"])
        back = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back != item.completion:
            where = next((i for i, (a, b) in enumerate(zip(back, item.completion, strict=False)) if a != b), len(back))
            near = slice(max(0, where - 10), where + 20)
            raise invalid(
                f"{item.place}, completion",
                "text that the tokenizer gives back unchanged, or completion_ids beside it",
                f"{item.completion[near]!r}, which comes back as {back[near]!r}",
            )
        offsets = encoded.get("offset_mapping")
        pieces = single.pieces(ids, item.completion, offsets)
        full = max_completion_length is not None and len(ids) >= max_completion_length
        if end_token and end is not None and not item.truncated and not full and (not ids or ids[-1] != end):
            ids, pieces = (*ids, end), (*pieces, single(end))
        done.append(Tokenised(prompt, ids, pieces))
    if not any(one.ids for one in done):
        raise invalid("rollouts", "at least one token", f"{rollouts.source} with empty completions only")
    return done


def _prompt_ids(item: Rollout, tokenizer: Any) -> tuple[int, ...]:
    if isinstance(item.prompt, str):
        ids = tuple(tokenizer(item.prompt)["input_ids"])
        return ids or ((tokenizer.bos_token_id,) if tokenizer.bos_token_id is not None else ())
    if tokenizer.chat_template is None:
        raise invalid(f"{item.place}, prompt", "text, because the tokenizer has no chat template", "chat messages")
    return tuple(tokenizer.apply_chat_template(item.prompt, add_generation_prompt=True, return_dict=False))


class _Pieces:
    """The text of tokens, one by one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if not text or "\ufffd" in text:  # a part of a character
                text = str(self._tokenizer.convert_ids_to_tokens(token))
            self._known[token] = text
        return self._known[token]

    def pieces(self, ids: Sequence[int], text: str | None, offsets: Any = None) -> tuple[str, ...]:
        alone = tuple(self(token) for token in ids)
        if text is None or offsets is None or "".join(alone) == text:
            return alone
        pieces, at = [], 0
        for start, end in offsets:
            pieces.append(text[max(start, at) : end])
            at = max(at, end)
        return tuple(pieces)
