"""Rollouts that do not make the measured step: sampled before it from other prompts, without touching the run."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from entropy_theory.influence import StepBatch
from entropy_theory.influence.held_out import reweighted_entropy, token_scores
from entropy_theory.influence.model_view import ModelView, Parameters, observed


def other_prompts(prompts: Sequence[Any], used: Sequence[Any], count: int, generator: torch.Generator) -> list[Any]:
    """Draw prompts that a step did not use; where the data have no others, those that it used.

    Args:
        prompts: All prompts: texts or conversations.
        used: Those of the step.
        count: How many different ones are wanted; fewer come where there are fewer.
        generator: Of the draw.

    Example:
        >>> sorted(other_prompts(["a", "b", "b", "c"], ["a", "a"], 5, torch.Generator().manual_seed(0)))
        ['b', 'c']
    """
    taken = {repr(prompt) for prompt in used}
    different = {repr(prompt): prompt for prompt in prompts}
    free = [prompt for key, prompt in different.items() if key not in taken] or list(different.values())
    return [free[place] for place in torch.randperm(len(free), generator=generator)[:count].tolist()]


def prompt_tokens(prompts: Sequence[Any], tokenizer: Any) -> list[list[int]]:
    """Tokenize prompts as TRL's trainer does: a conversation by the chat template, a text as it is."""
    if isinstance(prompts[0], str):
        return [list(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    return [
        list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
        for prompt in prompts
    ]


@torch.no_grad()
def sample_rollouts(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    generations: int,
    length: int,
    end_tokens: Collection[int],
    temperature: float,
    generator: torch.Generator,
) -> StepBatch:
    """Sample completions from the tempered policy; the global random state is neither read nor moved.

    Positions are counted as in the training forward, from the first column, padding included.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each prompt.
        generations: Completions per prompt.
        length: Most tokens of a completion.
        end_tokens: Ids that end a completion, which includes them.
        temperature: T of the policy π_T.
        generator: Of the sampling, on the CPU.

    Returns:
        The rollouts, with advantages of zero.
    """
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.tensor(prompt), 1
    ids, mask = ids.to(device), mask.to(device)
    count = len(prompts) * generations
    ends = torch.tensor(sorted(end_tokens), device=device)
    tokens, inside = torch.zeros(2, count, length, dtype=torch.long, device=device)
    going = torch.ones(count, dtype=torch.long, device=device)
    with observed(model):
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        options: dict[str, Any] = {"use_cache": True} | ({"logits_to_keep": 1} if keeps else {})
        with torch.autocast(device.type, enabled=False):
            output = model(input_ids=ids, attention_mask=mask, **options)  # each prompt is read once
            ids, mask = (each.repeat_interleave(generations, 0) for each in (ids, mask))
            cache, attention = output.past_key_values, mask
            cache.batch_repeat_interleave(generations)
            logits = output.logits[:, -1].repeat_interleave(generations, 0)
            for time in range(length):
                probs = (logits.float() / temperature).softmax(-1).cpu()
                latest = torch.multinomial(probs, 1, generator=generator).to(device) * going[:, None]
                tokens[:, time], inside[:, time] = latest[:, 0], going
                attention = torch.cat([attention, going[:, None]], dim=1)
                going = going * ~torch.isin(latest[:, 0], ends)
                if time == length - 1 or not going.any():
                    break
                logits = model(input_ids=latest, attention_mask=attention, past_key_values=cache, **options).logits[
                    :, -1
                ]
    groups = torch.arange(len(prompts), device=device).repeat_interleave(generations)
    advantages = torch.zeros(count, device=device)
    return StepBatch(ids, mask, tokens, inside, advantages, groups, temperature)


def measure_held_out(model: nn.Module, before: Parameters, after: Parameters, rollouts: StepBatch) -> dict[str, float]:
    """Estimate what a step does to on-policy entropy from rollouts of the policy before it.

    Args:
        model: What `audit.step.measurable` returns.
        before: The trained parameters before the step, by name.
        after: After it.
        rollouts: Those of `sample_rollouts`.

    Returns:
        The numbers of `ReweightedEntropy`, each with ``held_out_`` before its name; no error for a single group.
    """
    dtype = next(model.parameters()).dtype
    view = ModelView(model, rollouts, {name: value.detach().to(dtype) for name, value in before.items()})
    scores: list[tuple[Tensor, Tensor]] = [token_scores(view, parameters) for parameters in (before, after)]
    (old, old_entropy), (new, new_entropy) = scores
    estimate = reweighted_entropy(old, new, old_entropy, new_entropy, view.mask, rollouts.group_ids)
    return {f"held_out_{name}": float(value) for name, value in vars(estimate).items() if value is not None}
