"""Logits to measure token statistics on: drawn ones, and those of a language model at tokens that it writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_theory.vocab import token_statistics


@dataclass(frozen=True)
class Source:
    """Logits, what they are: (rows, V) in float32, and the tokens."""

    name: str
    logits: Tensor
    tokens: Tensor

    def mean_entropy(self) -> float:
        """Their mean entropy in nats."""
        return float(token_statistics(self.logits.detach(), self.tokens).entropy.mean())


def llm_like(rows: int, vocab_size: int, device: str) -> Source:
    """Draw float32 logits as of a trained model: half of the rows nearly certain, a fifth of them forks."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab_size, generator=generator) * 2.5
    first = torch.randint(0, vocab_size, (rows,), generator=generator)
    gap = torch.where(torch.arange(rows) % 10 < 5, 22.0, torch.where(torch.arange(rows) % 10 < 8, 15.0, 9.0))
    logits.scatter_(-1, first[:, None], (gap + torch.rand(rows, generator=generator))[:, None])
    logits.scatter_(-1, (first[:, None] + 1) % vocab_size, gap[:, None] - 1.0)
    other = torch.randint(0, vocab_size, (rows,), generator=generator)
    tokens = torch.where(torch.arange(rows) % 4 == 3, other, first)
    return Source("drawn", logits.to(device), tokens.to(device))


@torch.no_grad()
def of_model(name: str, rows: int, device: str) -> Source:
    """Take the logits of a language model at tokens that it writes itself, in answer to additions."""
    from entropy_theory.testbed.pretrained import resolve_model
    from entropy_theory.testbed.sampling import load_policy, sample_completions
    from entropy_theory.testbed.tasks import load_task

    model, tokenizer = load_policy(resolve_model(name), device)
    chats = load_task("addition", rows, 0, chat=True).prompts["prompt"]
    torch.manual_seed(0)
    logits: list[Tensor] = []
    tokens: list[Tensor] = []
    for first in range(0, rows, 16):
        if sum(map(len, tokens)) >= rows:
            break
        written = sample_completions(model, tokenizer, chats[first : first + 16], 16)
        counts, length = written.counts, written.counts.shape[1]
        output = model(input_ids=written.ids, attention_mask=written.attention_mask, logits_to_keep=length + 1)
        logits.append(output.logits[:, :-1][counts])
        tokens.append(written.ids[:, -length:][counts])
    return Source(name, torch.cat(logits)[:rows].contiguous(), torch.cat(tokens)[:rows])
