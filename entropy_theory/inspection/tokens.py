"""Rollouts in tokens: by their recorded ids, or from their text again, with what had to be assumed for that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from entropy_theory.errors import InputError, invalid, reading
from entropy_theory.inspection.rollouts import Rollout, Rollouts


@dataclass(frozen=True)
class Tokenised:
    """A rollout in tokens.

    Attributes:
        prompt_ids: The prompt's tokens, at least one.
        ids: The completion's tokens.
        pieces: The text of each; "" where a token continues the character of the one before.
        end_candidates: When the last token is an end token that the log does not name: the ids it may be. The first
            stands in ``ids`` until scoring puts the likeliest there.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    end_candidates: tuple[int, ...] = ()

    def ending_with(self, token: int, piece: str) -> Tokenised:
        """The same with the end token decided."""
        return replace(self, ids=(*self.ids[:-1], token), pieces=(*self.pieces[:-1], piece), end_candidates=())


@dataclass(frozen=True)
class TokenOptions:
    """How text becomes tokens where ids are not recorded.

    Attributes:
        end_token_ids: Tokens that end a completion; empty: none is put back.
        max_completion_length: The length limit of the sampling, in tokens, where known.
        chat_template_kwargs: Further arguments of the chat template.
        tools: JSON schemas of tools that the chat template is given.
    """

    end_token_ids: tuple[int, ...] = ()
    max_completion_length: int | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Any] = ()


@dataclass(frozen=True)
class TokenisedRollouts:
    """The rollouts that could be written in tokens.

    Attributes:
        rows: Their places among all rollouts.
        rollouts: They themselves, with the reasons of those left out.
        sequences: The same in tokens.
        retokenised: How many completions were tokenised from text.
        ended: How many of these got an end token.
        limited: How many of these reached the length limit or are marked as truncated.
        chats: How many prompts the chat template wrote.
    """

    rows: tuple[int, ...]
    rollouts: Rollouts
    sequences: list[Tokenised]
    retokenised: int
    ended: int
    limited: int
    chats: int


def tokenise(rollouts: Rollouts, tokenizer: Any, options: TokenOptions | None = None) -> TokenisedRollouts:
    """Write prompts and completions in tokens: recorded ids as they are, text as TRL tokenises it.

    Tokenising text again may give other tokens than were sampled. Where even the text does not come back from them, as
    when a tokenizer normalises Unicode, the tokens are certainly others: such a completion is left out and counted.
    Logged text has lost the end token, which is part of what was learned from, so that it is put back, except after
    completions that are marked as truncated or have the greatest allowed length.

    Args:
        rollouts: The rollouts.
        tokenizer: The model's tokenizer.
        options: How text becomes tokens; default: no end token, no length limit, no template arguments.

    Raises:
        ValueError: No completion comes back from its tokens, none has a token, a chat has no template or its template
            fails, or a prompt has no tokens.
    """
    options = options or TokenOptions()
    pieces = Pieces(tokenizer)
    prompts: dict[str, tuple[int, ...]] = {}
    sequences: list[Tokenised] = []
    rows: list[int] = []
    refused: list[InputError] = []
    counts = dict.fromkeys(("retokenised", "ended", "limited", "chats"), 0)
    for row, item in enumerate(rollouts.items):
        key = repr(item.prompt)
        if item.prompt_ids is None and key not in prompts:
            prompts[key] = _prompt_ids(item, tokenizer, options)
        prompt = item.prompt_ids or prompts.get(key, ())
        if not prompt:
            raise invalid(f"{item.place}, prompt", "at least one token", repr(item.prompt)[:80])
        if item.completion_ids is not None:
            sequence = Tokenised(prompt, item.completion_ids, pieces.of(item.completion_ids))
        else:
            try:
                sequence, limited = _from_text(item, prompt, tokenizer, pieces, options)
            except InputError as error:
                refused.append(error)
                continue
            counts["retokenised"] += 1
            counts["limited"] += limited
            counts["ended"] += bool(sequence.end_candidates)
        counts["chats"] += item.prompt_ids is None and not isinstance(item.prompt, str)
        sequences.append(sequence)
        rows.append(row)
    if not sequences and refused:
        raise refused[0]
    if not any(sequence.ids for sequence in sequences):
        raise invalid("rollouts", "at least one token", f"{rollouts.source} with empty completions only")
    left_out = rollouts.left_out
    if refused:
        words = f"{len(refused)} of {len(rollouts.items)} completions whose text does not come back from its tokens"
        left_out = (*left_out, f"{words}; the first is {refused[0]}")
    kept = replace(rollouts, items=tuple(rollouts.items[row] for row in rows), left_out=left_out)
    return TokenisedRollouts(tuple(rows), kept, sequences, **counts)


def _from_text(
    item: Rollout, prompt: tuple[int, ...], tokenizer: Any, pieces: Pieces, options: TokenOptions
) -> tuple[Tokenised, bool]:
    """Tokenise a completion again, and say whether it ended at the length limit."""
    text = item.completion
    assert text is not None  # reading keeps no completion without text and ids
    with reading(f"{item.place}, completion", "text that the tokenizer can read", text[:40]):
        # without a maximum the tokenizer warns of long texts on standard error
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
        ids = tuple(encoded["input_ids"])
        back = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if back != text:
        where = next((i for i, (a, b) in enumerate(zip(back, text, strict=False)) if a != b), min(len(back), len(text)))
        near = slice(max(0, where - 10), where + 20)
        raise invalid(
            f"{item.place}, completion",
            "text that the tokenizer gives back unchanged, or completion_ids beside it",
            f"{text[near]!a}, which comes back as {back[near]!a}",  # the two may look alike
        )
    texts = pieces.of(ids, text, encoded.get("offset_mapping"))
    full = options.max_completion_length is not None and len(ids) >= options.max_completion_length
    if item.truncated or full:
        return Tokenised(prompt, ids, texts), True
    ends = options.end_token_ids
    if not ends or (ids and ids[-1] in ends):
        return Tokenised(prompt, ids, texts), False
    return Tokenised(prompt, (*ids, ends[0]), (*texts, pieces(ends[0])), ends), False


def _prompt_ids(item: Rollout, tokenizer: Any, options: TokenOptions) -> tuple[int, ...]:
    name = f"{item.place}, prompt"
    if isinstance(item.prompt, str):
        with reading(name, "text that the tokenizer can read", item.prompt[:40]):
            ids = tuple(tokenizer(item.prompt)["input_ids"])
        return ids or ((tokenizer.bos_token_id,) if tokenizer.bos_token_id is not None else ())
    if tokenizer.chat_template is None:
        raise invalid(name, "text, because the tokenizer has no chat template", "chat messages")
    with reading(name, "messages that the model's chat template can write", repr(item.prompt)[:60]):
        return tuple(
            tokenizer.apply_chat_template(
                item.prompt,
                tools=list(options.tools) or None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **options.chat_template_kwargs,
            )
        )


def token_assumptions(
    written: TokenisedRollouts, sequences: Sequence[Tokenised], options: TokenOptions
) -> Iterator[str]:
    """Say in sentences, with counts, how tokens came about that the log does not name.

    Args:
        written: What `tokenise` returned.
        sequences: Its sequences with the end tokens decided.
        options: How text became tokens.
    """
    total, count = len(sequences), written.retokenised
    if not count:
        yield f"All {total:,} completions are read by their recorded token ids."
        return
    yield (
        f"{count:,} of {total:,} completions have no recorded token ids: their text is tokenised again, which may give "
        "other tokens than were sampled."
    )
    chosen = Counter(
        sequence.pieces[-1]
        for before, sequence in zip(written.sequences, sequences, strict=True)
        if before.end_candidates
    )
    ends = ", ".join(f"{piece} after {times:,}" for piece, times in chosen.most_common())
    several = f", the likeliest of {len(options.end_token_ids)} end tokens" if len(options.end_token_ids) > 1 else ""
    limit = options.max_completion_length
    known = f"a length limit of {limit} tokens" if limit else "marks of truncation"
    cut = f"; {written.limited:,} that end at {known} get none" if limit or written.limited else ""
    unknown = (
        "" if limit else ". No length limit is known (--max-completion-length): a truncated completion gets one too"
    )
    yield f"End tokens put back: {ends or 'none'}{several}{cut}{unknown}."
    if written.chats:
        arguments = json.dumps(dict(options.chat_template_kwargs)) if options.chat_template_kwargs else "no arguments"
        yield (
            f"{written.chats:,} prompts are written by the model's chat template with {arguments} "
            f"(--chat-template-kwargs) and {len(options.tools) or 'no'} tools (--tools)."
        )


class Pieces:
    """The text of tokens, one by one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """The text of a token; of a part of a character, the tokenizer's name for it."""
        if token not in self._known:
            text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if not text or "\ufffd" in text:
                text = str(self._tokenizer.convert_ids_to_tokens(token))
            self._known[token] = text
        return self._known[token]

    def of(self, ids: Sequence[int], text: str | None = None, offsets: Any = None) -> tuple[str, ...]:
        """The texts of tokens; with their text and offsets, parts that make up the text."""
        alone = tuple(self(token) for token in ids)
        if text is None or offsets is None or "".join(alone) == text:
            return alone
        pieces, at = [], 0
        for start, end in offsets:
            pieces.append(text[max(start, at) : end])
            at = max(at, end)
        return tuple(pieces)
