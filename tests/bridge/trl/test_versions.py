"""What must hold on every supported release of TRL; ``make trl-matrix`` runs this file on several of them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory.bridge import trl as bridge
from entropy_theory.bridge.trl import trainer as controlled
from entropy_theory.testbed import sum_task

TWO_PASSES = {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "max_steps": 4}


class Recording(bridge.EntropyControlledGRPOTrainer):
    """Keeps the first generation batch for the oracle."""

    seen: dict[str, torch.Tensor] | None = None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.seen = self.seen or {k: v.clone() for k, v in output.items() if isinstance(v, torch.Tensor)}
        return output


def trainer(model: Path, out: Path, rule: str | None, scoring: str = "batch", **changes: Any) -> GRPOTrainer:
    """A trainer on the sum task: ours with a rule, TRL's own with None."""
    options = arguments(out, **({"max_steps": 2} | changes))
    # Eight prompts: two generations make an epoch.
    task = {"reward_funcs": closeness, "train_dataset": sum_task.dataset(8, 0)}
    if rule is None:
        return build(GRPOTrainer, model, GRPOConfig(**options), **task)
    args = bridge.EntropyControlledGRPOConfig(**options, scoring=scoring)
    return build(Recording, model, args, rule=rule, **task)


def start_of(model: Path, out: Path) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer(model, out, None).model.parameters()])


def logged(run: GRPOTrainer, name: str) -> list[float]:
    return [line[f"entropy_control/{name}"] for line in run.state.log_history if f"entropy_control/{name}" in line]


@pytest.mark.parametrize("changes", [{}, TWO_PASSES], ids=["one pass", "two passes"])
def test_neutral_rule_equals_plain_trl_to_the_bit(tiny_decoder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = parameters_after(trainer(tiny_decoder, tmp_path, None, **changes))
    assert not torch.equal(plain, start_of(tiny_decoder, tmp_path))
    assert torch.equal(plain, parameters_after(trainer(tiny_decoder, tmp_path, "none", **changes)))


@pytest.mark.parametrize("scoring", ["batch", "one-pass"])
def test_mask_rule_against_plain_torch(tiny_decoder: Path, tmp_path: Path, scoring: str) -> None:
    step = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1.0, "max_steps": 1}
    run = trainer(tiny_decoder, tmp_path, "clip-b(mu=0.1, advantages='all', side='both')", scoring, **step)
    update = parameters_after(run) - start_of(tiny_decoder, tmp_path)

    # The oracle: the mask from its definition, −Σ A log p over the kept tokens by autograd, one step of plain SGD.
    model, batch = trainer(tiny_decoder, tmp_path, None).model, run.seen
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    valid, length = batch["completion_mask"].bool(), batch["completion_ids"].shape[1]
    log_p = model(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1].log_softmax(-1)
    picked = log_p.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        score = picked.exp() * (picked - (log_p.exp() * log_p).sum(-1))
        keep = valid & ((score - score[valid].mean()).abs() <= 0.1 * score[valid].std(unbiased=False))
    assert 0 < keep.sum() < valid.sum()
    advantages = batch["advantages"]
    if advantages.ndim == 1:  # one pass: TRL's dictionary still holds what it made itself
        advantages = advantages.unsqueeze(1)
    else:  # per token, zero where dropped, and grown by what TRL's divisor counts more than the rule's
        advantages = advantages.gather(1, advantages.abs().argmax(1, keepdim=True)) * keep.sum() / valid.sum()
    (-(advantages * picked)[keep].sum() / keep.sum()).backward()
    expected = torch.cat([-p.grad.flatten() for p in model.parameters()])
    # Float32 sums in another order.
    assert torch.linalg.norm(update - expected) < 1e-5 * torch.linalg.norm(expected)
    assert logged(run, "dropped_share") == pytest.approx([1 - (keep.sum() / valid.sum()).item()])


def test_live_rule_equals_trls_own_clipping(tiny_decoder: Path, tmp_path: Path) -> None:
    plain = parameters_after(trainer(tiny_decoder, tmp_path, None, **TWO_PASSES))
    run = trainer(tiny_decoder, tmp_path, "ppo-clip(dual_clip=None)", **TWO_PASSES)
    assert torch.equal(plain, parameters_after(run))
    assert max(logged(run, "dropped_share")) > 0.01  # the second pass clips


@pytest.mark.parametrize("rule", ["clip-b(mu=0.5)|ce-gppo", "kl-cov(fraction=0.05)"])
def test_other_live_rules_change_the_update(tiny_decoder: Path, tmp_path: Path, rule: str) -> None:
    start = start_of(tiny_decoder, tmp_path)
    plain = parameters_after(trainer(tiny_decoder, tmp_path, None, **TWO_PASSES))
    run = trainer(tiny_decoder, tmp_path, rule, **TWO_PASSES)
    assert torch.linalg.norm(parameters_after(run) - plain) > 1e-2 * torch.linalg.norm(plain - start)


def test_entropy_term_or_its_refusal(tiny_decoder: Path, tmp_path: Path) -> None:
    rule = "entropy-bonus(coefficient=0.5)"
    if Version(version("trl")) < Version("1.8"):
        with pytest.raises(ValueError, match=r"trl: expected 1.8 or newer for 'entropy-bonus"):
            trainer(tiny_decoder, tmp_path, rule)
        return
    run, plain = (trainer(tiny_decoder, tmp_path, one, max_steps=8, learning_rate=1e-3) for one in (rule, "none"))
    parameters_after(run), parameters_after(plain)
    assert logged(run, "entropy")[-1] > logged(plain, "entropy")[-1]


@pytest.mark.parametrize(
    "rule", ["clip-b(mu=0.5)|random-mask(fraction=0.1)", "stare(target=2.0, adaptive=True)|ppo-clip"]
)
def test_a_resumed_run_ends_with_the_same_weights(tiny_decoder: Path, tmp_path: Path, rule: str) -> None:
    # Taken up in the second epoch, whose order of prompts is another.
    options = TWO_PASSES | {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    whole = parameters_after(trainer(tiny_decoder, tmp_path / "whole", rule, **options))
    assert [p.name for p in (tmp_path / "whole").glob("checkpoint-*")] == ["checkpoint-8"]
    trainer(tiny_decoder, tmp_path / "parts", rule, **(options | {"max_steps": 6})).train()
    again = trainer(tiny_decoder, tmp_path / "parts", rule, **options)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(whole, torch.cat([p.detach().flatten() for p in again.model.parameters()]))


def test_other_releases_are_refused_with_the_range(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlled, "version", lambda _: "2.1.0")
    with pytest.raises(ValueError, match=r"trl: expected a release in >=1.0,<2,!=1.15.\*, received 2.1.0"):
        trainer(tiny_decoder, tmp_path, "none")
