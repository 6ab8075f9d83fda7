"""Options that observe never change a bit of the update, under any rule, however the completions were judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_layout import SETTINGS
from torch import nn
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory.bridge import trl as bridge
from entropy_theory.bridge.trl import scoring
from entropy_theory.control import rule_names

OBSERVING: dict[str, Any] = {
    "observe": ["w-reinforce", "clip-v", "ppo-clip", "kl-cov", "random-mask(fraction=0.5)", "entropy-budget"],
    "save_batches": 1,
    "realised_change_every": 1,
    "ledger": True,
    "influence_every": 1,
}
TWO_PASSES = {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "max_steps": 4}
RULES = [spec for name in rule_names() for spec in (SETTINGS.get(name) or [name])[:1]]
FEW = ["none", "clip-b(mu=0.5)", "random-mask(fraction=0.2)", "entropy-bonus(coefficient=0.1)", "kl-cov(fraction=0.1)"]


def judged_partly(completions: Sequence[str], target: Sequence[int], **_: Any) -> list[float | None]:
    rewards = closeness(completions, target)
    return [None if place % 4 == 1 else reward for place, reward in enumerate(rewards)]


def after(model: Path, out: Path, rule: str, reward: Any, **options: Any) -> torch.Tensor:
    config = bridge.EntropyControlledGRPOConfig(**arguments(out, **options), rule=rule)
    return parameters_after(build(bridge.EntropyControlledGRPOTrainer, model, config, reward_funcs=reward))


def assert_observing_changes_nothing(model: Path, out: Path, rule: str, reward: Any, **options: Any) -> None:
    alone = after(model, out, rule, reward, **options)
    assert torch.equal(after(model, out, rule, reward, **options, **OBSERVING), alone)
    assert list((out / "batches").iterdir())


@pytest.mark.parametrize("reward", [closeness, judged_partly])
@pytest.mark.parametrize("rule", FEW)
def test_observing_changes_nothing(tiny_decoder: Path, tmp_path: Path, rule: str, reward: Any) -> None:
    assert_observing_changes_nothing(tiny_decoder, tmp_path, rule, reward, **TWO_PASSES)


@pytest.mark.slow  # every rule of the registry, four trainings each
@pytest.mark.parametrize("reward", [closeness, judged_partly])
@pytest.mark.parametrize("rule", RULES)
def test_observing_changes_nothing_under_any_rule(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, reward: Any
) -> None:
    assert_observing_changes_nothing(tiny_decoder, tmp_path / "small", rule, reward, **TWO_PASSES)
    monkeypatch.setattr(scoring, "LARGE_VOCABULARY", 8)  # from hidden states, old log-probabilities too
    assert_observing_changes_nothing(tiny_decoder, tmp_path / "large", rule, reward, **TWO_PASSES)


def test_observing_changes_nothing_in_one_pass(tiny_decoder: Path, tmp_path: Path) -> None:
    for rule in ("none", "clip-b(mu=0.5)"):
        assert_observing_changes_nothing(tiny_decoder, tmp_path / rule, rule, judged_partly, max_steps=3)


def test_unjudged_completions_under_the_neutral_rule_are_trls(tiny_decoder: Path, tmp_path: Path) -> None:
    options = arguments(tmp_path, **TWO_PASSES)
    plain = parameters_after(build(GRPOTrainer, tiny_decoder, GRPOConfig(**options), reward_funcs=judged_partly))
    for rule in ("none", "ppo-clip(dual_clip=None)"):
        assert torch.equal(after(tiny_decoder, tmp_path, rule, judged_partly, **TWO_PASSES), plain)


def test_modules_that_a_user_keeps_in_evaluation_stay_there(tiny_decoder: Path, tmp_path: Path) -> None:
    options = arguments(tmp_path, **TWO_PASSES, realised_change_every=1, scoring="batch")
    config = bridge.EntropyControlledGRPOConfig(**options)
    trainer = build(bridge.EntropyControlledGRPOTrainer, tiny_decoder, config)
    kept: list[nn.Module] = [module for name, module in trainer.model.named_modules() if name.endswith("mlp")]
    seen = []

    def keep(*_: Any) -> None:
        for module in kept:
            module.eval()

    trainer.model.register_forward_pre_hook(keep)
    score = trainer._scorer.score

    def watched(*given: Any) -> Any:
        keep()
        found = score(*given)
        seen.append([module.training for module in kept])
        return found

    trainer._scorer.score = watched
    trainer.train()
    assert kept
    assert seen
    assert not any(any(states) for states in seen)
