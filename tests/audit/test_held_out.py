"""Rollouts that do not make the step: drawn from the very policy that is scored, and from prompts of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from audit_models import VOCAB, log_probs, small_decoder

from entropy_theory.audit.held_out import measure_held_out, other_prompts, prompt_tokens, sample_rollouts
from entropy_theory.influence.held_out import token_scores
from entropy_theory.influence.model_view import ModelView
from entropy_theory.testbed import decoder

PROMPTS = [[5], [3, 4, 7], [8, 9]]


def drawn(generations: int, temperature: float = 0.7, seed: int = 0):
    model = small_decoder().float()
    generator = torch.Generator().manual_seed(seed)
    return model, sample_rollouts(model, PROMPTS, generations, 4, {2, 6}, temperature, generator)


def test_tokens_come_from_the_scored_policy() -> None:
    """E[log π(y)] is −H at every context, whatever was sampled before: a martingale, with the variance of log π."""
    model, rollouts = drawn(1000)
    scores, entropy = token_scores(ModelView(model, rollouts), dict(model.named_parameters()))
    for time in range(4):
        inside = rollouts.valid[:, time]
        surplus = (scores + entropy)[:, time][inside]
        assert abs(float(surplus.mean())) < 4 * float(surplus.std()) / len(surplus) ** 0.5, time
        assert float(surplus.std()) > 0.3  # a policy that is nearly uniform would pass without any test
    first = rollouts.completion_ids[:1000, 0]
    frequency = torch.bincount(first, minlength=VOCAB) / 1000
    with torch.no_grad():
        p = (
            model(input_ids=torch.tensor([[0, 0, 5]]), attention_mask=torch.tensor([[0, 0, 1]])).logits[0, -1] / 0.7
        ).softmax(-1)
    assert float(((frequency - p).abs() / (p * (1 - p) / 1000).sqrt().clamp(min=1e-3)).max()) < 4.5  # of 21 tokens


def test_completions_end_with_an_end_token_and_prompts_are_padded_on_the_left() -> None:
    _, rollouts = drawn(50)
    assert rollouts.prompt_ids[[0, 50, 100]].tolist() == [[0, 0, 5], [3, 4, 7], [0, 8, 9]]
    assert rollouts.prompt_mask[[0, 50, 100]].tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert rollouts.group_ids.tolist() == [0] * 50 + [1] * 50 + [2] * 50
    ended = 0
    for tokens, mask in zip(rollouts.completion_ids.tolist(), rollouts.completion_mask.tolist(), strict=True):
        ends = [time for time, token in enumerate(tokens) if token in (2, 6)]
        length = ends[0] + 1 if ends else 4
        assert mask == [1] * length + [0] * (4 - length)
        assert tokens[length:] == [0] * (4 - length)
        ended += bool(ends)
    assert 10 < ended < 150


def test_the_random_state_and_the_model_are_as_before() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = small_decoder().float().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.set_rng_state(state)
    rollouts = [
        sample_rollouts(model, PROMPTS, 2, 4, {2}, 1.0, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(rollouts[0].completion_ids, rollouts[1].completion_ids)
    assert not torch.equal(rollouts[0].completion_ids, rollouts[2].completion_ids)


def test_scored_before_and_after() -> None:
    model, rollouts = drawn(20)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = {name: p + 0.02 * torch.ones_like(p) for name, p in before.items()}
    numbers = measure_held_out(model, before, after, rollouts)
    with torch.no_grad():
        old = log_probs(model, rollouts)
        for name, p in model.named_parameters():
            p.copy_(after[name])
        new = log_probs(model, rollouts)
    # with weights written as a loop over rollouts and tokens
    weights = [
        float((new - old)[row, :time].sum().exp())
        for row, length in enumerate(rollouts.completion_mask.sum(1).tolist())
        for time in range(length)
    ]
    w = torch.tensor(weights, dtype=torch.float64)
    assert numbers["held_out_effective_sample_size"] == pytest.approx(float(w.sum() ** 2 / (w * w).sum()), rel=1e-4)
    assert numbers["held_out_tokens"] == len(weights)
    assert numbers["held_out_groups"] == 3
    total = numbers["held_out_before"] + numbers["held_out_fixed"] + numbers["held_out_shift"]
    assert numbers["held_out_after"] == pytest.approx(total, abs=1e-12)
    alone = replace(rollouts, group_ids=torch.zeros_like(rollouts.group_ids))
    assert not any(name.endswith("_error") for name in measure_held_out(model, before, after, alone))


def test_prompts_that_a_step_did_not_use() -> None:
    prompts = [[{"role": "user", "content": str(i % 7)}] for i in range(20)]
    used = prompts[:3]
    found = other_prompts(prompts, used, 3, torch.Generator().manual_seed(0))
    assert len(found) == 3
    assert all(prompt not in used for prompt in found)
    assert found == other_prompts(prompts, used, 3, torch.Generator().manual_seed(0))
    assert sorted(other_prompts(["a", "b"], ["b", "a"], 9, torch.Generator().manual_seed(0))) == ["a", "b"]


def test_prompts_are_tokenized_as_texts_and_as_conversations() -> None:
    tokenizer = decoder.build_tokenizer()
    assert prompt_tokens(["17=", "5="], tokenizer) == [tokenizer("17=")["input_ids"], tokenizer("5=")["input_ids"]]
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    assert prompt_tokens([[{"role": "user", "content": "17"}]], tokenizer) == [tokenizer("17=")["input_ids"]]
