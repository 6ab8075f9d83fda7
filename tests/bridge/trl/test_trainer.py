"""The seam inside TRL's trainer: exact where it must be, right against plain torch, and clear when refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, parameters_after

from entropy_theory.bridge import trl as bridge
from entropy_theory.bridge.trl.compatibility import warn_untested
from entropy_theory.control import rule as build_rule


@pytest.mark.parametrize(
    "changes",
    [{"loss_type": loss} for loss in sorted(bridge.SUPPORTED_LOSSES)]
    + [
        {"num_iterations": 2, "max_steps": 4},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "max_steps": 5},
        {"temperature": 1.3, "beta": 0.05},
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"top_entropy_quantile": 0.5},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()),
)
def test_neutral_rule_over_options(tiny_decoder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    options = arguments(tmp_path, **({"max_steps": 2} | changes))
    plain = parameters_after(build(GRPOTrainer, tiny_decoder, GRPOConfig(**options)))
    ours = parameters_after(build(bridge.EntropyControlledGRPOTrainer, tiny_decoder, GRPOConfig(**options)))
    assert torch.equal(plain, ours)


class Recording(bridge.EntropyControlledGRPOTrainer):
    """Keeps what the seam saw, for the oracles below."""

    def _start_control(self) -> None:
        super()._start_control()
        decide = self._generation.decide

        def watched(output: dict[str, Any], statistics: Any) -> dict[str, Any]:
            changes = decide(output, statistics)
            self.seen = {k: v.clone() for k, v in (output | changes).items() if isinstance(v, torch.Tensor)}
            self.metrics_seen = {k: list(v) for k, v in self._metrics["train"].items()}
            return changes

        self._generation.decide = watched


def plain_forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary at the completion's positions, in float64."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits
    length = batch["completion_ids"].shape[1]
    return logits[:, -length - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("denominator", ["kept", "valid"])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_update_of_a_mask_rule_against_plain_torch(
    tiny_decoder: Path, tmp_path: Path, loss_type: str, denominator: str
) -> None:
    args = GRPOConfig(**arguments(tmp_path, loss_type=loss_type, optim="sgd", max_grad_norm=0.0, learning_rate=1.0))
    rule = f"clip-b(mu=0.1, advantages='all', side='both', denominator={denominator!r})"
    trainer = build(Recording, tiny_decoder, args, rule=rule)
    start = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    update = parameters_after(trainer) - start

    # The oracle: the same mask from its definition, −Σ A log p / denominator by autograd, one step of plain SGD.
    model = build(GRPOTrainer, tiny_decoder, args).model
    batch, mask = trainer.seen, trainer.seen["completion_mask"].bool()
    log_p = plain_forward(model, batch)
    picked = log_p.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = -(log_p.exp() * log_p).sum(-1)
        score = picked.exp() * (entropy + picked)
        keep = mask & ((score - score[mask].mean()).abs() <= 0.1 * score[mask].std(unbiased=False))
        assert 0 < keep.sum() < mask.sum()
    advantages = torch.where(keep, sequence_advantages(trainer, batch), 0.0)
    counted = keep if denominator == "kept" else mask
    if loss_type == "dapo":
        loss = -(advantages * picked)[mask].sum() / counted.sum()
    elif loss_type == "grpo":
        rows = torch.where(mask, advantages * picked, 0.0).sum(1) / counted.sum(1).clamp(min=1)
        loss = -rows.mean()
    else:
        loss = -(advantages * picked)[mask].sum() / (mask.shape[0] * 8)
    loss.backward()
    expected = -torch.cat([p.grad.flatten() for p in model.parameters()])
    # Both sides are float32 gradients of the same function, summed in another order.
    assert torch.linalg.norm(update - expected) < 2e-5 * torch.linalg.norm(expected)


def sequence_advantages(trainer: Recording, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """TRL's own advantages, before any rule, from its log."""
    return torch.tensor(list(trainer._logs["advantages"]))[:, None].expand_as(batch["completion_mask"])


def test_metrics_against_plain_torch(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = build(Recording, tiny_decoder, GRPOConfig(**arguments(tmp_path)), rule="none")
    model = build(GRPOTrainer, tiny_decoder, GRPOConfig(**arguments(tmp_path))).model
    trainer.train()
    batch = trainer.seen
    mask = batch["completion_mask"].bool()
    with torch.no_grad():
        log_p = plain_forward(model, batch).double()
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    scores = p * (entropy.unsqueeze(-1) + log_p)
    centered = scores.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1) - (p * scores).sum(-1)
    advantages = sequence_advantages(trainer, batch).double()
    logged = {
        k.removeprefix(bridge.PREFIX): v[0] for k, v in trainer.metrics_seen.items() if k.startswith(bridge.PREFIX)
    }
    assert logged["entropy"] == pytest.approx(entropy[mask].mean().item(), rel=1e-5)
    assert logged["mean_centered_discriminant"] == pytest.approx(centered[mask].mean().item(), rel=1e-4, abs=1e-7)
    assert logged["slope"] == pytest.approx(-(advantages * centered)[mask].mean().item(), rel=1e-4, abs=1e-7)
    likely, good = centered[mask] > 0, advantages[mask] > 0
    bad = advantages[mask] < 0
    for quadrant, members in enumerate((good & likely, good & ~likely, bad & likely, bad & ~likely), start=1):
        # A token within rounding of S_c = 0 may fall on either side.
        assert logged[f"quadrant_share_q{quadrant}"] == pytest.approx(members.double().mean().item(), abs=0.01)
    assert logged["dropped_share"] == 0.0


def test_realised_change_is_the_change_on_the_same_tokens(tiny_decoder: Path, tmp_path: Path) -> None:
    config = bridge.EntropyControlledGRPOConfig(**arguments(tmp_path, realised_change_every=2, max_steps=4))
    trainer = build(Recording, tiny_decoder, config)
    history: list[tuple[int, float]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.entropies = None

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            values = trainer._metrics["train"].get(bridge.PREFIX + "realised_change")
            if values:
                with torch.no_grad():
                    log_p = plain_forward(trainer.model, trainer.seen)
                mask = trainer.seen["completion_mask"].bool()
                after = -(log_p.exp() * log_p).sum(-1)[mask].mean().item()
                history.append(
                    (state.global_step, values[-1] - (after - trainer.metrics_seen[bridge.PREFIX + "entropy"][-1]))
                )

    trainer.add_callback(Watch())
    trainer.train()
    assert [step for step, _ in history] == [1, 3]
    # A difference of two float32 means of size about one.
    assert all(abs(error) < 1e-5 for _, error in history)


def test_random_mask_draws_from_the_step(tiny_decoder: Path, tmp_path: Path) -> None:
    config = GRPOConfig(**arguments(tmp_path, max_steps=2))
    one, same = (
        parameters_after(build(Recording, tiny_decoder, config, rule="random-mask(fraction=0.3)")) for _ in range(2)
    )
    assert torch.equal(one, same)


def test_observed_rules_report_and_change_nothing(tiny_decoder: Path, tmp_path: Path) -> None:
    options = arguments(tmp_path, max_steps=3)
    plain = parameters_after(build(Recording, tiny_decoder, GRPOConfig(**options)))
    observe = ["clip-b(mu=0.5, advantages='all')", "random-mask(fraction=0.25)"]
    config = bridge.EntropyControlledGRPOConfig(**options, observe=observe)
    trainer = build(Recording, tiny_decoder, config)
    assert torch.equal(plain, parameters_after(trainer))
    shares = [trainer.metrics_seen[f"entropy_control/observed/{rule}/dropped_share"][-1] for rule in observe]
    assert shares[0] > 0
    assert shares[1] == pytest.approx(0.25, abs=0.01)
    assert trainer.metrics_seen["entropy_control/dropped_share"][-1] == 0


@pytest.mark.parametrize(
    ("rule", "changes", "message"),
    [
        ("ppo-clip", {"importance_sampling_level": "sequence"}, "importance_sampling_level: expected 'token' beside"),
        ("clip-b|ppo-clip", {"delta": 2.0}, "delta: expected unset beside .* use the rule's dual_clip"),
        ("kl-cov", {"off_policy_mask_threshold": 0.1}, "off_policy_mask_threshold: expected unset"),
        ("dcpo", {"entropy_coef": 0.1}, "entropy_coef: expected unset beside 'dcpo': use the rule entropy-bonus"),
        ("dcpo", {"use_adaptive_entropy": True}, "use_adaptive_entropy: expected unset"),
        ("bapo", {"gradient_accumulation_steps": 3, "steps_per_generation": 4}, "a multiple of gradient_accumulation"),
        ("none", {"scoring": "twice"}, "scoring: expected 'auto', 'batch' or 'one-pass'"),
        ("ppo-clip", {"scoring": "one-pass"}, "'batch' for a ratio-based rule: .* with 'ppo-clip'"),
        ("clip-b", {"scoring": "one-pass", "num_iterations": 2}, "'one-pass' with num_iterations = 2"),
        ("clip-b", {"scoring": "one-pass", "steps_per_generation": 2}, "'one-pass' with steps_per_generation = 2"),
        ("clip-b", {"scoring": "one-pass", "gradient_accumulation_steps": 2}, "with gradient_accumulation_steps = 2"),
        ("clip-b", {"scoring": "one-pass", "use_vllm": True}, "scoring: expected 'batch' where TRL .* with vLLM"),
        ("clip-b", {"save_batches": -1}, "save_batches: expected an integer >= 0"),
        ("clip-x", {}, "clip-b"),
        ("clip-b(nu=1)", {}, "nu"),
        ("none", {"loss_type": "of-the-future"}, "loss_type: expected one of"),
    ],
)
def test_refusals_come_before_any_work(
    tmp_path: Path, rule: str, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GRPOConfig(**arguments(tmp_path))
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        # The model does not exist: an attempt to load it would raise OSError.
        build(bridge.EntropyControlledGRPOTrainer, tmp_path / "nowhere", config, rule=rule)


@pytest.mark.parametrize(
    ("rule", "loss_type", "release", "message"),
    [
        (
            "entropy-bonus",
            "dapo",
            "1.7.0",
            "trl: expected 1.8 or newer for 'entropy-bonus': before, entropies carry no",
        ),
        ("ppo-clip", "luspo", "1.9.2", "trl: expected 1.10 or newer for luspo beside 'ppo-clip'"),
    ],
)
def test_what_older_releases_cannot_carry(
    tmp_path: Path, rule: str, loss_type: str, release: str, message: str
) -> None:
    config = GRPOConfig(**arguments(tmp_path, loss_type=loss_type))
    with pytest.raises(ValueError, match=message):
        bridge.check_supported(build_rule(rule), config, release)
    bridge.check_supported(build_rule("clip-b"), config, release)
    bridge.check_supported(build_rule(rule), config, "1.16.0")


def test_ligers_loss_is_named_where_trl_has_it(tmp_path: Path) -> None:
    config = GRPOConfig(**arguments(tmp_path))
    config.use_liger_kernel = True
    with pytest.raises(ValueError, match="use_liger_kernel: expected False: Liger's loss reads one advantage per seq"):
        bridge.check_supported(build_rule("none"), config, "1.12.0")
    bridge.check_supported(build_rule("clip-b"), config, "1.13.0")  # from here on it changes kernels in the layers only


def test_untested_options_are_said(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warn_untested(GRPOConfig(**arguments(tmp_path)), accelerator)
    with pytest.warns(UserWarning, match="use_vllm: accepted, and untested with entropy control"):
        warn_untested(GRPOConfig(**arguments(tmp_path, use_vllm=True)), accelerator)


@pytest.mark.parametrize("release", ["0.29.1", "1.15.0", "1.15.2", "2.0.0"])
def test_unsupported_trl(release: str) -> None:
    with pytest.raises(ValueError, match=r"trl: expected a release in >=1.0,<2,!=1.15.\*, received " + release):
        bridge.check_trl_version(release)


@pytest.mark.parametrize("release", ["1.0.0", "1.14.2", "1.16.0", "1.17.0.dev0"])
def test_supported_trl(release: str) -> None:
    bridge.check_trl_version(release)


def test_a_batch_without_valid_tokens_is_said_and_survived(tiny_decoder: Path, tmp_path: Path) -> None:
    # Nothing ends within one token, so truncation masks every completion.
    config = GRPOConfig(**arguments(tmp_path, max_completion_length=1, mask_truncated_completions=True))
    trainer = build(Recording, tiny_decoder, config, rule="clip-b")
    after = parameters_after(trainer)
    assert trainer.metrics_seen[bridge.PREFIX + "empty_batch"] == [1.0]
    assert math.isfinite(after.sum().item())
