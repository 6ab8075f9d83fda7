"""What must hold on every supported release of TRL; ``make trl-matrix`` runs this file on several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from entropy_theory.bridge import trl as bridge
from entropy_theory.testbed import decoder, sum_task


def build(model: Path, out: Path, rule: str | None, **changes: Any) -> GRPOTrainer:
    """A trainer on the sum task: ours with a rule, TRL's own with None."""
    options = {
        "output_dir": str(out),
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 8,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
    }
    kind = GRPOTrainer if rule is None else Recording
    return kind(
        model=str(model),
        reward_funcs=sum_task.reward,
        args=GRPOConfig(**(options | changes)),
        train_dataset=sum_task.dataset(8, 0),
        processing_class=decoder.build_tokenizer(),
        **({} if rule is None else {"rule": rule}),
    )


class Recording(bridge.EntropyControlledGRPOTrainer):
    """Keeps the first generation batch for the oracle."""

    seen: dict[str, torch.Tensor] | None = None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.seen = self.seen or {k: v.clone() for k, v in output.items() if isinstance(v, torch.Tensor)}
        return output


def weights(trainer: GRPOTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def trained(trainer: GRPOTrainer, **how: Any) -> torch.Tensor:
    trainer.train(**how)
    return weights(trainer)


TWO_PASSES = {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "max_steps": 4}


@pytest.mark.parametrize("changes", [{}, TWO_PASSES], ids=["one pass", "two passes"])
def test_neutral_rule_equals_plain_trl_to_the_bit(tiny_decoder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = build(tiny_decoder, tmp_path, None, **changes)
    start = weights(plain)
    after = trained(plain)
    assert not torch.equal(start, after)
    assert torch.equal(after, trained(build(tiny_decoder, tmp_path, "none", **changes)))


def test_mask_rule_against_plain_torch(tiny_decoder: Path, tmp_path: Path) -> None:
    step = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1.0, "max_steps": 1}
    trainer = build(tiny_decoder, tmp_path, "clip-b(mu=0.1, advantages='all', side='both')", **step)
    model, start = build(tiny_decoder, tmp_path, None, **step).model, weights(trainer)
    update = trained(trainer) - start

    # The oracle: the mask from its definition, −Σ A log p over the kept tokens by autograd, one step of plain SGD.
    batch = trainer.seen
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    valid, length = batch["completion_mask"].bool(), batch["completion_ids"].shape[1]
    log_p = model(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1].log_softmax(-1)
    picked = log_p.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        score = picked.exp() * (picked - (log_p.exp() * log_p).sum(-1))
        keep = valid & ((score - score[valid].mean()).abs() <= 0.1 * score[valid].std(unbiased=False))
    assert 0 < keep.sum() < valid.sum()
    # The seam's advantages are per token where the rule dropped something: group advantages are their row maxima.
    rows = batch["advantages"].gather(1, batch["advantages"].abs().argmax(1, keepdim=True))
    shrunk = rows * keep.sum() / valid.sum()  # TRL divides by the valid tokens, the rule by those it keeps
    (-(shrunk * picked)[keep].sum() / keep.sum()).backward()
    expected = torch.cat([-p.grad.flatten() for p in model.parameters()])
    # Float32 sums in another order.
    assert torch.linalg.norm(update - expected) < 1e-5 * torch.linalg.norm(expected)
    logged = trainer.state.log_history[0]
    assert logged["entropy_control/dropped_share"] == pytest.approx(1 - (keep.sum() / valid.sum()).item())


def test_a_resumed_run_ends_with_the_same_weights(tiny_decoder: Path, tmp_path: Path) -> None:
    # Two generations make an epoch: the run is taken up in the second one, whose order of prompts is another.
    options = TWO_PASSES | {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    rule = "clip-b(mu=0.5)|random-mask(fraction=0.1)"
    whole = trained(build(tiny_decoder, tmp_path / "whole", rule, **options))
    assert [p.name for p in (tmp_path / "whole").glob("checkpoint-*")] == ["checkpoint-8"]
    trained(build(tiny_decoder, tmp_path / "parts", rule, **(options | {"max_steps": 6})))
    again = build(tiny_decoder, tmp_path / "parts", rule, **options)
    assert torch.equal(whole, trained(again, resume_from_checkpoint=True))


def test_other_releases_are_refused_with_the_range(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "version", lambda _: "2.1.0")
    with pytest.raises(ValueError, match=r"trl: expected a release in >=1.0,<2,!=1.15.\*, received 2.1.0"):
        build(tiny_decoder, tmp_path, "none")
