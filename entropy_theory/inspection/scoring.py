"""The statistics of recorded completions under a model: under a memory bound, and in parts that survive a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from entropy_theory import records
from entropy_theory.errors import invalid, missing_extra, reading
from entropy_theory.inspection.tokens import Pieces, Tokenised
from entropy_theory.testbed.pretrained import check_finite, resolve_model
from entropy_theory.vocab import model_head, token_statistics
from entropy_theory.vocab.model_head import OutputLayer
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS

if TYPE_CHECKING:
    Progress = Callable[[int, int, str], None]

_SCORED = (*FIELDS, *SECOND_ORDER_FIELDS)


@dataclass(frozen=True, eq=False)
class Policy:
    """A model that scores, its tokenizer, and how its logits come about.

    Attributes:
        name: Folder or hub name.
        model: The causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        vocab_size: V, the width of its logits.
        layer: Its output layer, when the logits are a product with it to rounding; else None.
        identity: What distinguishes it from another model of the name.
        end_token_ids: Every id that ends a completion, as TRL takes them: the tokenizer's and those of the model's
            generation configuration.
    """

    name: str
    model: Any
    tokenizer: Any
    vocab_size: int
    layer: OutputLayer | None
    identity: str
    end_token_ids: tuple[int, ...] = ()


def load_policy(name: str, tokenizer: str | None = None, dtype: str = "float32") -> Policy:
    """Load a causal language model and its tokenizer, from safetensors and without code from the hub.

    Args:
        name: Folder or hub name.
        tokenizer: Folder or hub name of the tokenizer; default: the model's.
        dtype: "float32" or "bfloat16".

    Raises:
        ValueError: It does not load, has no causal head (weights are missing), or the tokenizer has ids beyond the
            model's vocabulary.
        ImportError: The extra ``train`` is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "train") from None
    if dtype not in ("float32", "bfloat16"):
        raise invalid("dtype", "float32 or bfloat16", repr(dtype))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name = resolve_model(name)
    with reading("model", "a causal language model in safetensors", name):
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    if report["missing_keys"]:
        lacking = ", ".join(sorted(report["missing_keys"])[:3])
        raise invalid("model", "a model with a causal head and all its weights", f"{name!r}, which lacks {lacking}")
    check_finite(model, name)
    with reading("tokenizer", "a tokenizer", tokenizer or name):
        tokens = transformers.AutoTokenizer.from_pretrained(tokenizer or name, trust_remote_code=False)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    highest = max(tokens.get_vocab().values(), default=0)
    if highest >= vocab_size:
        expected = f"one whose ids are below {vocab_size}, the model's vocabulary"
        raise invalid("tokenizer", expected, f"{tokenizer or name!r} with ids up to {highest}")
    model = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    for end in ends:
        if type(end) is not int:
            raise invalid("model", "a generation configuration whose eos_token_id is an id or ids", f"{name}: {end!r}")
    known = dict.fromkeys(end for end in (tokens.eos_token_id, *ends) if end is not None and 0 <= end < vocab_size)
    layer, ids = OutputLayer(model), torch.arange(min(4, vocab_size), device=model.device).unsqueeze(0)
    with reading("model", "a causal language model that runs", name), torch.no_grad():
        obstacle = layer.obstacle(lambda: model(input_ids=ids, use_cache=False).logits)
    return Policy(name, model, tokens, vocab_size, None if obstacle else layer, _identity(name, model), tuple(known))


def _identity(name: str, model: Any) -> str:
    """The sizes and times of a folder's files, or the commit of a hub model."""
    folder = Path(name)
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.glob("*")) if p.is_file()]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def score(
    policy: Policy,
    sequences: Sequence[Tokenised],
    folder: Path,
    *,
    temperature: float = 1.0,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> tuple[dict[str, np.ndarray], list[Tokenised]]:
    """Compute the token statistics of all completions, a batch at a time; batches already in the folder are read.

    Where an end token was put back and may be one of several, the likeliest under the model is taken.

    Sequences of like length share a batch, padded on the right, so that positions count from the first token whatever
    the model's position encoding. Where the logits of a batch would exceed the budget they are read tile by tile from
    the hidden states; for a model whose head does more than multiply, batches are smaller instead.

    Args:
        policy: The model.
        sequences: Prompts and completions in tokens.
        folder: Where to keep the parts; one subfolder for each combination of model, tokens and options.
        temperature: T > 0 of the policy π_T whose statistics are asked.
        batch_tokens: Tokens in a batch, padding included; a longer sequence is a batch by itself.
        progress: Called with (tokens done, tokens in all, words).

    Returns:
        One float32 array for each field of ``TokenStatistics``, over all completion tokens, sequence after sequence;
        and the sequences with their end tokens decided.

    Raises:
        ValueError: An argument is out of range, a sequence is longer than the model's positions or has ids beyond its
            vocabulary, or the model gives values that are not finite.
    """
    if batch_tokens < 1:
        raise invalid("batch_tokens", "an integer >= 1", batch_tokens)
    _check_sequences(policy, sequences)
    if policy.layer is None:
        batch_tokens = min(batch_tokens, model_head.positions_within_budget(policy.vocab_size))
    batches = batches_of(sequences, batch_tokens)
    described = description(policy, sequences, temperature, batch_tokens)
    parts = folder / records.configuration_hash(described)
    records.open_run(parts, described)
    starts = np.cumsum([0, *(len(s.ids) for s in sequences)])
    total, done = int(starts[-1]), 0
    out = {name: np.empty(total, dtype=np.float32) for name in _SCORED}
    decided, pieces = list(sequences), Pieces(policy.tokenizer)
    for number, rows in enumerate(batches):
        places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
        path = parts / f"part-{number:05d}.safetensors"
        if not path.exists():
            measured = _score_batch(policy, [sequences[row] for row in rows], temperature)
            wrong = [name for name in _SCORED if not np.isfinite(measured[name]).all()]
            if wrong:
                raise invalid("model", "finite statistics", f"{', '.join(wrong)} not finite in sequence {rows[0] + 1}")
            records.save_arrays(path, measured)
        part = records.load_arrays(path, "scores")
        if part.keys() != {*_SCORED, "end_tokens"} or any(len(part[name]) != len(places) for name in _SCORED):
            raise invalid("scores", f"the statistics of {len(places)} tokens", path)
        for name in _SCORED:
            out[name][places] = part[name]
        for row, token in zip(rows, part["end_tokens"].tolist(), strict=True):
            if sequences[row].end_candidates:
                decided[row] = sequences[row].ending_with(token, pieces(token))
        done += len(places)
        if progress is not None:
            progress(done, total, "tokens scored")
    return out, decided


def description(
    policy: Policy, sequences: Sequence[Tokenised], temperature: float, batch_tokens: int
) -> dict[str, Any]:
    """Describe what is measured, so that parts of one measurement are never taken for those of another."""
    tokens = [(s.prompt_ids, s.ids, s.end_candidates) for s in sequences]
    return {
        "model": policy.name,
        "identity": policy.identity,
        "sequences": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "temperature": temperature,
        "batch_tokens": batch_tokens,
        "dtype": str(policy.model.dtype),
        "device": policy.model.device.type,
    }


def _check_sequences(policy: Policy, sequences: Sequence[Tokenised]) -> None:
    limit = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    for number, sequence in enumerate(sequences, start=1):
        tokens = sequence.prompt_ids + sequence.ids + sequence.end_candidates
        length, highest = len(sequence.prompt_ids) + len(sequence.ids), max(tokens)
        if limit is not None and length > limit:
            raise invalid(f"rollout {number}", f"at most {limit} tokens, the model's positions", length)
        if highest >= policy.vocab_size:
            raise invalid(f"rollout {number}", f"token ids below {policy.vocab_size}, the model's vocabulary", highest)


def batches_of(sequences: Sequence[Tokenised], batch_tokens: int) -> list[list[int]]:
    """Group sequences of like length, the longest first, so that rows × longest stays within the bound.

    Example:
        >>> short, long = Tokenised((1,), (2,), ("a",)), Tokenised((1, 1), (2, 2), ("a", "a"))
        >>> batches_of([short, long, short, Tokenised((1,), (), ())], 4)
        [[1], [0, 2]]
    """
    lengths = [len(s.prompt_ids) + len(s.ids) for s in sequences]
    order = sorted((row for row, s in enumerate(sequences) if s.ids), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


@torch.no_grad()
def _score_batch(policy: Policy, rows: Sequence[Tokenised], temperature: float) -> dict[str, np.ndarray]:
    device, width = policy.model.device, max(len(r.prompt_ids) + len(r.ids) for r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    before = torch.zeros_like(ids, dtype=torch.bool)  # the positions that predict the completion's tokens
    for place, row in enumerate(rows):
        text = row.prompt_ids + row.ids
        ids[place, : len(text)] = torch.tensor(text)
        attention[place, : len(text)] = 1
        before[place, len(row.prompt_ids) - 1 : len(text) - 1] = True
    tokens = torch.tensor([token for row in rows for token in row.ids], device=device)
    inputs = {"input_ids": ids.to(device), "attention_mask": attention.to(device), "use_cache": False}
    before = before.to(device)
    ends = torch.tensor([len(row.ids) for row in rows]).cumsum(0) - 1  # where each row's last token stands
    if policy.layer is None or ids.numel() <= model_head.positions_within_budget(policy.vocab_size):
        logits = policy.model(**inputs).logits[before]
        _decide_ends(tokens, rows, ends, lambda place, candidates: logits[place, candidates])
        statistics = token_statistics(logits, tokens, temperature=temperature, second_order=True)
    else:
        layer = policy.layer
        operands = layer.operands(policy.model.base_model(**inputs).last_hidden_state[before])
        hidden, matrix, bias = operands

        def logits_of(place: int, candidates: Tensor) -> Tensor:
            some = None if bias is None else bias[candidates]
            return model_head.product_logits(hidden[place], matrix[candidates], some, layer.softcap)

        _decide_ends(tokens, rows, ends, logits_of)
        statistics = layer.statistics(operands, tokens, temperature=temperature, second_order=True)
    measured = {name: getattr(statistics, name).float().cpu().numpy() for name in _SCORED}
    return measured | {"end_tokens": tokens[ends].cpu().numpy()}


def _decide_ends(
    tokens: Tensor, rows: Sequence[Tokenised], ends: Tensor, logits_of: Callable[[int, Tensor], Tensor]
) -> None:
    """Put the likeliest of its candidates where a row's end token is not known.

    Nothing reads an end token, so that the model's input need not change.
    """
    for row, place in zip(rows, ends.tolist(), strict=True):
        if len(row.end_candidates) > 1:
            candidates = torch.tensor(row.end_candidates, device=tokens.device)
            tokens[place] = candidates[logits_of(place, candidates).argmax()]
