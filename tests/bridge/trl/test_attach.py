"""Ways in and out: attach, TrlParser, saved batches, what rules are given, observed rules of the live ratio."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, ScriptArguments, TrlParser
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory import records
from entropy_theory.bridge import trl as bridge
from entropy_theory.cli import main
from entropy_theory.control import TokenBatch, rule


class Own(GRPOTrainer):
    """A trainer of somebody's own."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "own": 1.0}, start_time)


@pytest.mark.parametrize("spec", ["clip-b(mu=0.5)", "clip-b(mu=0.5)|clip-higher"])
def test_attach_equals_the_subclass(tiny_decoder: Path, tmp_path: Path, spec: str) -> None:
    options = arguments(tmp_path, num_iterations=2, max_steps=4)
    expected = build(
        bridge.EntropyControlledGRPOTrainer, tiny_decoder, GRPOConfig(**options), rule=spec, reward_funcs=closeness
    )
    wanted = parameters_after(expected)
    trainer = build(Own, tiny_decoder, GRPOConfig(**options), reward_funcs=closeness)
    assert bridge.attach(trainer, spec, observe=["clip-v"], realised_change_every=1) is trainer
    assert isinstance(trainer, Own)
    assert torch.equal(parameters_after(trainer), wanted)
    first = trainer.state.log_history[0]
    assert first["own"] == 1.0
    assert {"entropy_control/observed/clip-v/dropped_share", "entropy_control/realised_change"} <= set(first)


def test_attach_refuses(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = build(Own, tiny_decoder, GRPOConfig(**arguments(tmp_path, num_iterations=2)))
    with pytest.raises(ValueError, match=r"speed: expected an option among rule_seed, .* received 3"):
        bridge.attach(trainer, "clip-b", speed=3)
    with pytest.raises(ValueError, match="'one-pass' with num_iterations = 2"):
        bridge.attach(trainer, "clip-b", scoring="one-pass")
    assert type(trainer) is Own  # a refusal leaves it as it was
    assert not hasattr(trainer.args, "scoring")
    trainer.train()  # one of the two passes
    with pytest.raises(ValueError, match="one between two generation batches, received one at micro-step 1 of 2"):
        bridge.attach(trainer, "clip-b")
    trainer = bridge.attach(build(Own, tiny_decoder, GRPOConfig(**arguments(tmp_path))), "clip-b")
    with pytest.raises(ValueError, match="not yet under entropy control, received one with the rule 'clip-b'"):
        bridge.attach(trainer, "clip-b")


def test_configuration_from_yaml_and_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nnum_generations: 4\nper_device_train_batch_size: 4\n"
        "rule: clip-b(mu=1)|clip-higher\nobserve: [clip-v, 'random-mask(fraction=0.1)']\nsave_batches: 5\n"
    )
    words = ["run", "--config", str(tmp_path / "run.yaml"), "--save_batches", "7", "--dataset_name", "mine"]
    monkeypatch.setattr(sys, "argv", words)
    script, config = TrlParser((ScriptArguments, bridge.EntropyControlledGRPOConfig)).parse_args_and_config()
    assert script.dataset_name == "mine"
    assert (config.rule, config.save_batches, config.scoring) == ("clip-b(mu=1)|clip-higher", 7, "auto")
    assert config.observe == ["clip-v", "random-mask(fraction=0.1)"]


def test_saved_batches_serve_the_lens(tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = arguments(tmp_path, max_steps=3, save_batches=2, per_device_train_batch_size=16)
    trainer = build(bridge.EntropyControlledGRPOTrainer, tiny_decoder, bridge.EntropyControlledGRPOConfig(**options))
    trainer.train()
    names = sorted(path.name for path in (tmp_path / "batches").iterdir())
    assert names == ["batch-000000.safetensors", "batch-000002.safetensors"]
    batch = TokenBatch.load(tmp_path / "batches" / names[1])
    assert batch.group_ids.tolist() == [0] * 8 + [1] * 8
    assert batch.rewards.tolist() == list(trainer._logs["rewards"]["reward"])  # TRL keeps those of the last batch
    for one in ("w-reinforce", "entropy-budget", "clip-v"):
        rule(one).apply(batch)
    assert batch.available("sum_squared_discriminant")
    assert batch.available("grpo_curvature")
    assert main(["lens", str(tmp_path / "batches" / names[1]), "--rules", "clip-b(mu=1)", "entropy-bonus"]) == 0
    assert "clip-b(mu=1)" in capsys.readouterr().out


def test_save_batches_of_the_command_line(tiny_decoder: Path, tmp_path: Path) -> None:
    size = ["--steps", "3", "--prompts-per-step", "4", "--generations", "4", "--save-batches", "2"]
    assert main(["train", "--model", str(tiny_decoder), *size, "--rule", "clip-higher", "--out", str(tmp_path)]) == 0
    assert len(list((tmp_path / "batches").iterdir())) == 2
    assert records.read_lines(tmp_path / "metrics.jsonl")[0]["entropy_control/dropped_share"] == 0.0


@pytest.mark.parametrize("spec", ["w-reinforce", "w-reinforce|ppo-clip(dual_clip=None)"])
def test_a_completion_without_reward_teaches_nothing(tiny_decoder: Path, tmp_path: Path, spec: str) -> None:
    def half(completions: list[str], **_: Any) -> list[float | None]:
        return [None if place % 2 else float(place % 4 == 0) for place in range(len(completions))]

    options = arguments(tmp_path, optim="sgd", max_grad_norm=0.0, learning_rate=1.0)
    trainer = build(
        bridge.EntropyControlledGRPOTrainer, tiny_decoder, GRPOConfig(**options), rule=spec, reward_funcs=half
    )
    prepare, seen = trainer._generate_and_score_completions, {}

    def after(inputs: Any) -> Any:
        seen.update(prepare(inputs))
        return seen

    trainer._generate_and_score_completions = after
    start = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    update = parameters_after(trainer) - start
    # The oracle: TRL's token mean counts every token; the unjudged half has no gradient.
    model = build(GRPOTrainer, tiny_decoder, GRPOConfig(**options)).model
    ids = torch.cat([seen["prompt_ids"], seen["completion_ids"]], dim=1)
    mask = torch.cat([seen["prompt_mask"], seen["completion_mask"]], dim=1)
    length = seen["completion_ids"].shape[1]
    log_p = model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1].log_softmax(-1)
    picked = log_p.gather(-1, seen["completion_ids"].unsqueeze(-1)).squeeze(-1)
    gradient = torch.tensor([0.1, 0.0, -1.0, 0.0]).repeat(len(picked) // 4)  # λ = .1, unjudged, wrong, unjudged
    valid = seen["completion_mask"].bool()
    (-(gradient.unsqueeze(1) * picked)[valid].sum() / valid.sum()).backward()
    expected = -torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.linalg.norm(update - expected) < 2e-5 * torch.linalg.norm(expected)  # float32 sums in another order


def test_live_rules_are_observed_at_the_live_ratio(tiny_decoder: Path, tmp_path: Path) -> None:
    options = arguments(tmp_path, num_iterations=2, max_steps=4, learning_rate=2e-2)
    plain = parameters_after(build(GRPOTrainer, tiny_decoder, GRPOConfig(**options), reward_funcs=closeness))
    config = bridge.EntropyControlledGRPOConfig(**options, observe=["ppo-clip(dual_clip=None)", "kl-cov"])
    trainer = build(bridge.EntropyControlledGRPOTrainer, tiny_decoder, config, reward_funcs=closeness)
    assert torch.equal(parameters_after(trainer), plain)
    log = trainer.state.log_history[:-1]
    shares = [line["entropy_control/observed/ppo-clip(dual_clip=None)/dropped_share"] for line in log]
    assert shares[0] == 0 < shares[1]
    # TRL clips at the same bounds and counts the same tokens; what it logs went through float32.
    assert shares == pytest.approx([line["clip_ratio/region_mean"] for line in log], abs=1e-6)
    assert all(line["entropy_control/observed/kl-cov/dropped_share"] == 0 for line in log)  # it drops nothing
