"""The ways to get token statistics that `token_statistics.py` compares: others' functions, and the package's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from entropy_theory.vocab import token_statistics

FIELDS = ("log_probs", "entropy", "discriminant", "baseline", "centered_discriminant")


def official(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """The composition a user of the authors' code runs, written from its description, over the whole tensor."""
    if logits.dtype == torch.float32:
        chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
        log_probs = chosen - torch.stack([row.logsumexp(-1) for row in logits])
    else:
        pairs = zip(logits, tokens, strict=True)
        log_probs = torch.stack([row.log_softmax(-1).gather(-1, token[None])[0] for row, token in pairs])
    entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    squared = p * p
    baseline = squared.sum(-1) * entropy + (squared * log_p).sum(-1)
    discriminant = log_probs.exp() * (entropy + log_probs)
    return log_probs, entropy, discriminant, baseline, discriminant - baseline


def completed(logits: Tensor, log_probs: Tensor, entropy: Tensor) -> tuple[Tensor, ...]:
    """Add to a trainer's log-probabilities and entropy what no trainer has: the baseline, as in ``official``."""
    log_p = logits.float().log_softmax(-1)
    squared = log_p.exp() ** 2
    baseline = squared.sum(-1) * entropy + (squared * log_p).sum(-1)
    discriminant = log_probs.exp() * (entropy + log_probs)
    return log_probs, entropy, discriminant, baseline, discriminant - baseline


def with_trl(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Call the functions of TRL for the log-probabilities and the entropy."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    return completed(logits, selective_log_softmax(logits, tokens), entropy_from_logits(logits))


def with_verl(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Call the functions of verl for the log-probabilities and the entropy."""
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    return completed(logits, logprobs_from_logits(logits, tokens), entropy_from_logits(logits))


def naive(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Every definition as it is written, from one log-softmax."""
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    weighted = p * log_p
    entropy = -weighted.sum(-1)
    baseline = (p * p).sum(-1) * entropy + (p * weighted).sum(-1)
    log_probs = log_p.gather(-1, tokens[:, None]).squeeze(-1)
    discriminant = log_probs.exp() * (entropy + log_probs)
    return log_probs, entropy, discriminant, baseline, discriminant - baseline


TRAINERS = {"TRL": with_trl, "verl": with_verl}


def ours(impl: str) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Return one of the package's implementations in the form of the peers."""

    def run(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        statistics = token_statistics(logits, tokens, impl=impl)  # type: ignore[arg-type]
        return tuple(getattr(statistics, name) for name in FIELDS)

    return run
