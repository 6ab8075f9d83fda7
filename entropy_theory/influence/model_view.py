"""Mean entropy of fixed contexts as a function of a model's weights, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from entropy_theory.influence.step_batch import StepBatch


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def entropy_gradient(model: Any, batch: StepBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Compute ∇_θ of the token mean of H over the batch's valid tokens, and the entropies.

    Args:
        model: A causal language model of transformers.
        batch: The tokens; their advantages are not read.

    Returns:
        The gradient by name of the parameters that train, in float32 or wider, and H of every position, (B, T), in
        nats. No ``.grad`` is touched, and the model is evaluated without dropout.
    """
    weights = {
        name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32)).requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    inputs = {
        "input_ids": torch.cat([batch.prompt_ids, batch.completion_ids], dim=1),
        "attention_mask": torch.cat([batch.prompt_mask, batch.completion_mask], dim=1),
        "use_cache": False,
    }
    length = batch.completion_ids.shape[1]
    with _evaluating(model), torch.enable_grad():
        logits = functional_call(model, weights, kwargs=inputs).logits[:, -length - 1 : -1]
        log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / batch.temperature).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        gradient = torch.autograd.grad(entropy[batch.valid].mean(), list(weights.values()), allow_unused=True)
    found = {
        name: torch.zeros_like(weights[name]) if value is None else value
        for name, value in zip(weights, gradient, strict=True)
    }
    return found, entropy.detach()
