"""Tiny models and batches for the tests of influence, and the loop of one backward per token that they are held to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from entropy_theory.influence import StepBatch

VOCAB = 11


class TinyModel(nn.Module):
    """A causal model in float64 whose positions share all parameters: a running mean of embeddings, and an MLP."""

    def __init__(self, seed: int = 0, width: int = 6, tied: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.embedding, self.inner = weight(VOCAB, width), weight(width, width)
        self.output = self.embedding if tied else weight(VOCAB, width)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].to(self.embedding)
        seen = (self.embedding[input_ids] * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)
        return torch.tanh((seen + self.embedding[input_ids]) @ self.inner)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.hidden(input_ids, attention_mask) @ self.output.T)


class Table(nn.Module):
    """Free logits: those after a token are a row of a table. Equal tokens before share it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.rows = nn.Parameter(2 * torch.randn(64, VOCAB, generator=generator, dtype=torch.float64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.rows[input_ids])


def step_batch(rows: int = 8, width: int = 5, seed: int = 0, vocab: int = VOCAB, **settings: Any) -> StepBatch:
    """Groups of two completions of unequal lengths; one row of the last group has no valid token."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, vocab, (rows // 2, 3), generator=generator).repeat_interleave(2, 0)
    prompt_mask = torch.ones_like(prompts)
    prompts[2:4, 0], prompt_mask[2:4, 0] = 0, 0
    completions = torch.randint(1, vocab, (rows, width), generator=generator)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[-1] = 0
    mask = (torch.arange(width) < lengths[:, None]).long()
    advantages = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return StepBatch(prompts, prompt_mask, completions, mask, advantages, torch.arange(rows) // 2, **settings)


def log_policies(model: Any, batch: StepBatch) -> Tensor:
    """Log-probabilities of the whole vocabulary at valid positions, (n, V), with their graph."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    attention = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    logits = model(input_ids=ids, attention_mask=attention).logits
    return (logits[:, batch.prompt_ids.shape[1] - 1 : -1] / batch.temperature).log_softmax(-1)[batch.valid]


def one_backward_per_token(model: Any, batch: StepBatch, over: Tensor, factors: dict[str, Tensor] | None = None):
    """D_t = ⟨P ∇H̄, ∇log p_t⟩ for every valid token, by reverse mode alone; H̄ over a mask of contexts."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    logs = log_policies(model, batch)
    entropy = -(logs.exp() * logs).sum(-1)[over[batch.valid]].mean()
    slopes = torch.autograd.grad(entropy, list(named.values()), retain_graph=True)
    if factors is not None:
        slopes = [factors[name] * slope for name, slope in zip(named, slopes, strict=True)]
    values = []
    for log_prob in logs.gather(-1, batch.completion_ids[batch.valid][:, None])[:, 0]:
        gradient = torch.autograd.grad(log_prob, list(named.values()), retain_graph=True, allow_unused=True)
        values.append(sum((a * b).sum() for a, b in zip(slopes, gradient, strict=True) if b is not None))
    return torch.stack(values)
