"""Small models, a batch and an optimizer step for the tests of the audit."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from entropy_theory.audit import step as audit_step
from entropy_theory.influence import StepBatch
from entropy_theory.influence.model_view import full_precision
from entropy_theory.testbed import decoder

RATE = 1e-3
VOCAB = 21


def sampled(rows: int = 6, width: int = 5, seed: int = 0) -> StepBatch:
    """Groups of three completions; some prompts are shorter, some completions end early, two begin alike."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, VOCAB, (rows // 3, 3), generator=generator).repeat_interleave(3, dim=0)
    mask = torch.ones(rows, 3, dtype=torch.long)
    prompts[3:, 0], mask[3:, 0] = 0, 0
    completions = torch.randint(3, VOCAB, (rows, width), generator=generator)
    completions[1, :3] = completions[0, :3]
    lengths = torch.tensor([5, 5, 3, 4, 1, 5])
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, width).contiguous()
    inside = (torch.arange(width) < lengths[:, None]).long()
    return StepBatch(prompts, mask, completions, inside, advantages, torch.arange(rows) // 3)


def log_probs(model: nn.Module, batch: StepBatch) -> torch.Tensor:
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
    attention = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    logits = logits[:, batch.prompt_ids.shape[1] - 1 : -1] / batch.temperature
    return logits.log_softmax(-1).gather(-1, batch.completion_ids[..., None])[..., 0]


def loss(model: nn.Module, batch: StepBatch) -> torch.Tensor:
    inside = batch.completion_mask
    return -(log_probs(model, batch) * batch.advantages.to(torch.float64) * inside).sum() / inside.sum()


def step(model: nn.Module, batch: StepBatch, optimizer: torch.optim.Optimizer | None = None):
    """Make an optimizer step; parameters before and after it, the gradient."""
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    optimizer.zero_grad()
    with full_precision(torch.float64):  # the model's own casts to float32 would be in the gradient
        loss(model, batch).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    gradient = {name: p.grad.clone() for name, p in trained.items()}
    optimizer.step()
    return before, {name: p.detach().clone() for name, p in trained.items()}, gradient


def small_decoder(head_only: bool = False) -> nn.Module:
    model = decoder.build_model(decoder.WarmupConfig(hidden_size=16, layers=1, heads=2), VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():  # initial weights are so small that every policy is nearly uniform
            parameter.mul_(6.0 if parameter.dim() == 2 else 1.0)
    model = audit_step.measurable(model, "float64").requires_grad_(True)
    if head_only:
        model.requires_grad_(False).get_output_embeddings().requires_grad_(True)
    return model


def entropies(model: nn.Module, parameters, batch: StepBatch) -> torch.Tensor:
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
    attention = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
    inputs = {"input_ids": ids, "attention_mask": attention, "use_cache": False}
    with torch.no_grad(), full_precision(torch.float64):
        logits = torch.func.functional_call(model, parameters, (), inputs).logits
    logs = (logits[:, batch.prompt_ids.shape[1] - 1 : -1] / batch.temperature).log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)[batch.completion_mask.bool()]


class Bigrams(nn.Module):
    """A tabular policy: the token before has a row of logits of its own."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.table = nn.Parameter(1.5 * table)

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])
