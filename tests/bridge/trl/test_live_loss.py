"""The live seam: TRL's own losses as rules, held against TRL, and what only this seam can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory.bridge import trl as bridge

# Two passes over each batch, the second with ratios far from 1.
REUSE = {"num_iterations": 2, "max_steps": 4, "learning_rate": 2e-2, "per_device_train_batch_size": 16}


def run(kind: type[GRPOTrainer], model: Path, options: dict[str, Any], **extra: Any) -> tuple[torch.Tensor, list[dict]]:
    trainer = build(kind, model, GRPOConfig(**options), reward_funcs=closeness, **extra)
    return parameters_after(trainer), trainer.state.log_history[:-1]


def both(
    model: Path, out: Path, rule: str, of_trl: dict[str, Any], shared: dict[str, Any]
) -> tuple[tuple[torch.Tensor, list[dict]], tuple[torch.Tensor, list[dict]]]:
    shared = REUSE | shared
    plain = run(GRPOTrainer, model, arguments(out, **shared, **of_trl))
    return plain, run(bridge.EntropyControlledGRPOTrainer, model, arguments(out, **shared), rule=rule)


@pytest.mark.parametrize(
    ("rule", "of_trl", "shared"),
    [
        ("ppo-clip(dual_clip=None)", {}, {"loss_type": "dapo"}),
        ("ppo-clip(dual_clip=None)", {}, {"loss_type": "grpo", "beta": 0.05, "use_bias_correction_kl": False}),
        ("ppo-clip(dual_clip=None)", {}, {"loss_type": "bnpo", "gradient_accumulation_steps": 2}),
        ("ppo-clip(dual_clip=None)", {}, {"loss_type": "dr_grpo", "top_entropy_quantile": 0.5}),
        ("ppo-clip(dual_clip=None)", {}, {"loss_type": "luspo", "temperature": 1.3}),
        (
            "clip-higher(epsilon_high=0.28, dual_clip=None)",
            {"epsilon_high": 0.28},
            {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
        ),
        ("ppo-clip(epsilon_low=0.1, dual_clip=1.3)", {"epsilon": 0.1, "epsilon_high": 0.2, "delta": 1.3}, {}),
        ("cispo(epsilon_low=None, epsilon_high=0.1)", {"epsilon_high": 1.1}, {"loss_type": "cispo"}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()),
)
def test_trls_own_losses_as_rules_to_the_bit(
    tiny_decoder: Path, tmp_path: Path, rule: str, of_trl: dict[str, Any], shared: dict[str, Any]
) -> None:
    (plain, plain_log), (ours, log) = both(tiny_decoder, tmp_path, rule, of_trl, shared)
    assert torch.equal(plain, ours)
    clipped = "cispo_clip_ratio" if shared.get("loss_type") == "cispo" else "clip_ratio/region_mean"
    assert max(line[clipped] for line in plain_log) > 0.01  # the second pass clips
    names = {"loss", "entropy", "grad_norm", "kl"} & set(plain_log[0])
    assert [{n: line[n] for n in names} for line in log] == [{n: line[n] for n in names} for line in plain_log]


@pytest.mark.parametrize(
    ("rule", "of_trl", "shared"),
    [
        ("sapo", {}, {"loss_type": "sapo"}),
        ("ppo-clip(dual_clip=None)", {}, {"beta": 0.05, "use_bias_correction_kl": True}),  # TRL's default
        ("gspo(epsilon_low=0.03, epsilon_high=0.04)", {"importance_sampling_level": "sequence"}, {"loss_type": "grpo"}),
    ],
    ids=["sapo", "corrected KL", "gspo"],
)
def test_trls_own_losses_as_rules(
    tiny_decoder: Path, tmp_path: Path, rule: str, of_trl: dict[str, Any], shared: dict[str, Any]
) -> None:
    if rule.startswith("gspo"):
        of_trl = of_trl | {"epsilon": 0.03, "epsilon_high": 0.04}
    start = parameters(tiny_decoder, tmp_path)
    (plain, plain_log), (ours, log) = both(tiny_decoder, tmp_path, rule, of_trl, shared)
    # The same function with its gradients added in another order (sapo multiplies by 4/τ elsewhere; TRL corrects the
    # KL by the surrogate's ratio; gspo sums per token what TRL sums per sequence): float32 rounding, grown over four
    # steps of AdamW, which divides by small second moments.
    assert torch.linalg.norm(ours - plain) < 1e-4 * torch.linalg.norm(plain - start)
    assert log[1]["loss"] == pytest.approx(plain_log[1]["loss"], abs=1e-6)


def parameters(model: Path, out: Path) -> torch.Tensor:
    trainer = build(GRPOTrainer, model, GRPOConfig(**arguments(out)))
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
@pytest.mark.parametrize(
    ("rule", "of_trl"),
    [
        ("entropy-bonus(coefficient=0.3)", {"entropy_coef": 0.3}),
        ("ppo-clip(dual_clip=None)|entropy-bonus(coefficient=0.3)", {"entropy_coef": 0.3}),
        (
            "adaptive-entropy(variant='trl', initial=0.2, target=1.2, step=0.1)",
            {"use_adaptive_entropy": True, "entropy_coef": 0.2, "entropy_target": 1.2, "entropy_coef_delta": 0.1},
        ),
    ],
    ids=["bonus", "clip and bonus", "adaptive"],
)
def test_entropy_terms_equal_trls(
    tiny_decoder: Path, tmp_path: Path, rule: str, of_trl: dict[str, Any], loss_type: str
) -> None:
    # TRL's controller looks at every optimizer step, ours at every generation batch: here they are the same.
    shared = {"loss_type": loss_type, "num_iterations": 1 if "adaptive" in rule else 2}
    start = parameters(tiny_decoder, tmp_path)
    (plain, _), (ours, log) = both(tiny_decoder, tmp_path, rule, of_trl, shared)
    # One divides Σ H and multiplies by c, the other sums c H: float32 rounding, grown over four steps of AdamW.
    assert torch.linalg.norm(ours - plain) < 1e-4 * torch.linalg.norm(plain - start)
    assert log[0]["loss"] < -0.05 or "adaptive" in rule  # the logged loss has the term in it
    without, _ = run(GRPOTrainer, tiny_decoder, arguments(tmp_path, **(REUSE | shared)))
    assert torch.linalg.norm(without - plain) > 1e-2 * torch.linalg.norm(plain - start)


def test_state_of_both_parts_survives_a_checkpoint(tiny_decoder: Path, tmp_path: Path) -> None:
    adaptive = "adaptive-entropy(variant='trl', initial=0.2, target=1.2, step=0.1)"
    rule = f"clip-b(mu=0.5)|{adaptive}|clip-higher|{adaptive}"
    options = arguments(tmp_path, **(REUSE | {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}))

    def fresh() -> bridge.EntropyControlledGRPOTrainer:
        kind = bridge.EntropyControlledGRPOTrainer
        return build(kind, tiny_decoder, GRPOConfig(**options), rule=rule, reward_funcs=closeness)

    whole, again = fresh(), fresh()
    expected = parameters_after(whole)
    # The batch part moved at four generation batches, the ratio-based part at eight optimizer steps.
    assert set(whole.rule_state) == {"1", "3"}
    assert whole.rule_state["3"]["coefficient"] != whole.rule_state["1"]["coefficient"]
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert torch.equal(torch.cat([p.detach().flatten() for p in again.model.parameters()]), expected)
    assert again.rule_state == whole.rule_state


def test_kl_cov_against_plain_torch(tiny_decoder: Path, tmp_path: Path) -> None:
    """The second step on a batch, in four micro-batches, from the rule's definition and autograd."""
    options = arguments(tmp_path, num_iterations=2, max_steps=2, optim="sgd", max_grad_norm=0.0, learning_rate=0.5)
    options |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    trainer = build(
        bridge.EntropyControlledGRPOTrainer,
        tiny_decoder,
        GRPOConfig(**options),
        rule="kl-cov(fraction=0.1, beta=0.5)",
        reward_funcs=closeness,
    )
    points: list[dict[str, torch.Tensor]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            points.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if len(points) == 2:
                points.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    trainer.add_callback(Watch())
    trainer.train()
    batch = {
        name: torch.cat([part[name] for part in trainer._buffered_inputs])
        for name, value in trainer._buffered_inputs[0].items()
        if value.dim()
    }
    mask = batch["completion_mask"].bool()

    def log_probs() -> torch.Tensor:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
        return logits.log_softmax(-1).gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)

    def at(point: dict[str, torch.Tensor]) -> torch.Tensor:
        trainer.model.load_state_dict(point, strict=False)
        trainer.model.zero_grad()
        return log_probs()

    old = at(points[0]).detach()
    now = at(points[1])
    advantages = batch["advantages"].unsqueeze(1).expand(mask.shape)
    a, p = advantages[mask], now.detach()[mask]
    covariance = (a - a.mean()) * (p - p.mean())
    chosen = torch.zeros_like(mask)
    chosen[mask] = covariance >= covariance.sort().values[-int(0.1 * len(a))]
    objective = (now - old).exp() * advantages - 0.5 * torch.where(chosen, (now - old).abs(), 0.0)
    (-objective[mask].sum() / mask.sum()).backward()
    expected = -0.5 * torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    update = torch.cat([(points[2][n] - points[1][n]).flatten() for n, _ in trainer.model.named_parameters()])
    # Differences of float32 parameters of order 1 that moved by about 1e-2.
    assert torch.linalg.norm(update - expected) < 1e-4 * torch.linalg.norm(expected)
