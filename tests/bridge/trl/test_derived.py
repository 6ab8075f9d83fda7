"""Trainers of somebody's own, and TRL's other trainers: the rule acts in them, or an error names the class first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory.bridge import trl as bridge

# Two updates on each batch: the second clips and has a ratio.
REUSE = {"num_iterations": 2, "max_steps": 4, "learning_rate": 2e-2, "optim": "sgd", "max_grad_norm": 0.0}
MASK, RATIO = "clip-b(mu=0.3, advantages='all', side='both')", "ppo-clip(dual_clip=None)"


def start_of(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def update(trainer: Any) -> torch.Tensor:
    start = start_of(trainer)
    return parameters_after(trainer) - start


# -- a loss of its own ------------------------------------------------------------------------------------------------


class Penalised(GRPOTrainer):
    """Adds to TRL's loss, from a forward of its own."""

    weight = 5.0

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        log_probs = self._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])[0]
        return loss + self.weight * (log_probs * inputs["completion_mask"]).square().mean()


class PenalisedAbove(bridge.EntropyControlledGRPOTrainer):
    """The same on top of a controlled trainer, at TRL's public method."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss + 5.0 * sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize("rule", [MASK, RATIO, "entropy-bonus(coefficient=0.2)"])
def test_what_a_class_adds_to_the_loss_stays(tiny_decoder: Path, tmp_path: Path, rule: str) -> None:
    options = arguments(tmp_path, **(REUSE | {"max_steps": 1, "learning_rate": 0.1}))

    def one_step(weight: float, rule: str) -> torch.Tensor:
        trainer = build(Penalised, tiny_decoder, GRPOConfig(**options), reward_funcs=closeness)
        trainer.weight = weight
        return update(bridge.attach(trainer, rule))

    # One step of plain SGD is linear in the loss: control and penalty add up, to float32 rounding of the parameters.
    both, control, penalty, neither = (one_step(w, r) for w, r in ((5, rule), (0, rule), (5, "none"), (0, "none")))
    assert torch.linalg.norm(penalty - neither) > 0.1 * torch.linalg.norm(neither)
    if rule != RATIO:  # which has nothing to clip at its first step
        assert torch.linalg.norm(control - neither) > 1e-2 * torch.linalg.norm(neither)
    assert torch.linalg.norm(both - control - (penalty - neither)) < 1e-4 * torch.linalg.norm(both)


def test_trls_clipping_under_a_penalty_is_trls(tiny_decoder: Path, tmp_path: Path) -> None:
    options = GRPOConfig(**arguments(tmp_path, **REUSE))
    plain = update(build(Penalised, tiny_decoder, options, reward_funcs=closeness))
    ours = update(bridge.attach(build(Penalised, tiny_decoder, options, reward_funcs=closeness), RATIO))
    # The loss is added to the penalty in the same order: to the bit, but for the order of the two backward passes.
    assert torch.linalg.norm(ours - plain) < 1e-5 * torch.linalg.norm(plain)


def test_a_class_above_the_controlled_trainer(tiny_decoder: Path, tmp_path: Path) -> None:
    options = GRPOConfig(**arguments(tmp_path, **REUSE))
    kinds = (PenalisedAbove, bridge.EntropyControlledGRPOTrainer)
    above, without = (update(build(kind, tiny_decoder, options, rule=RATIO, reward_funcs=closeness)) for kind in kinds)
    assert torch.linalg.norm(above - without) > 0.1 * torch.linalg.norm(without)


class Deaf(GRPOTrainer):
    """A loss that neither calls TRL's nor runs its forward."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return model(input_ids=inputs["completion_ids"]).logits.mean()


class ControlledDeaf(bridge.EntropyControlMixin, Deaf):
    pass


class DeafAbove(bridge.EntropyControlledGRPOTrainer):
    compute_loss = Deaf._compute_loss


@pytest.mark.parametrize("rule", [MASK, RATIO, "entropy-bonus", "none|clip-b"])
@pytest.mark.parametrize(
    ("kind", "named"), [(ControlledDeaf, "Deaf, whose _compute_loss"), (DeafAbove, "DeafAbove, whose compute_loss")]
)
def test_a_loss_that_replaces_trls_is_named_before_training(tmp_path: Path, rule: str, kind: type, named: str) -> None:
    with pytest.raises(ValueError, match=f"rule: expected 'none' for {named} does not call TRL's: call super"):
        # The model does not exist: an attempt to load it would raise OSError.
        build(kind, tmp_path / "nowhere", GRPOConfig(**arguments(tmp_path)), rule=rule)


@pytest.mark.parametrize("rule", [MASK, RATIO])
def test_gmpo(tiny_decoder: Path, tmp_path: Path, rule: str) -> None:
    # As many rows as tokens: advantages of shape (B, T) would pass for others without an error.
    options = arguments(tmp_path, per_device_train_batch_size=8, num_generations=8, max_steps=2)
    plain = update(build(GMPOTrainer, tiny_decoder, GMPOConfig(**options), reward_funcs=closeness))
    trainer = build(GMPOTrainer, tiny_decoder, GMPOConfig(**options), reward_funcs=closeness)
    with pytest.raises(ValueError, match="'none' for GMPOTrainer, whose _compute_loss does not call TRL's"):
        bridge.attach(trainer, rule)
    assert type(trainer) is GMPOTrainer
    assert torch.equal(update(bridge.attach(trainer, "none", observe=["clip-v"])), plain)


class Hidden(GRPOTrainer):
    """Mentions TRL's loss and does not call it: only training shows it."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        trl_loss = super()._compute_loss
        return (
            model(input_ids=inputs["completion_ids"]).logits.mean() if callable(trl_loss) else trl_loss(model, inputs)
        )


def test_a_loss_that_does_not_reach_trls_stops_at_the_first_micro_batch(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = build(Hidden, tiny_decoder, GRPOConfig(**arguments(tmp_path)), reward_funcs=closeness)
    start = start_of(trainer)
    with pytest.raises(ValueError, match="'none' for Hidden, whose loss does not reach TRL's through super"):
        bridge.attach(trainer, MASK).train()
    assert torch.equal(start_of(trainer), start)


class Explicit(GRPOTrainer):
    """Calls TRL's loss past the classes in between."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return 2 * GRPOTrainer._compute_loss(self, model, inputs)


def test_a_loss_that_goes_past_the_rule_stops_too(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = build(Explicit, tiny_decoder, GRPOConfig(**arguments(tmp_path)), reward_funcs=closeness)
    with pytest.raises(ValueError, match="'none' for Explicit, whose loss does not reach TRL's through super"):
        bridge.attach(trainer, RATIO).train()


class Weighting(GRPOTrainer):
    """Weighs the advantages of each sequence in the loss."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        weights = torch.linspace(0.5, 1.5, len(inputs["advantages"]))
        return super()._compute_loss(model, inputs | {"advantages": inputs["advantages"] * weights})


class WeightingAbove(bridge.EntropyControlledGRPOTrainer):
    """The same after the generation batch was controlled."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        return output | {"advantages": output["advantages"] * torch.linspace(0.5, 1.5, len(output["advantages"]))}


def test_advantages_that_a_class_changes(tiny_decoder: Path, tmp_path: Path) -> None:
    options = GRPOConfig(**arguments(tmp_path, **REUSE))
    plain = update(build(Weighting, tiny_decoder, options, reward_funcs=closeness))
    ours = update(bridge.attach(build(Weighting, tiny_decoder, options, reward_funcs=closeness), RATIO))
    assert torch.equal(ours, plain)
    mask_first = bridge.attach(build(Weighting, tiny_decoder, options, reward_funcs=closeness), f"{MASK}|ppo-clip")
    for trainer in (mask_first, bridge.attach(build(Weighting, tiny_decoder, options), "kl-cov(fraction=0.1)")):
        with pytest.raises(ValueError, match=r"advantages: expected the advantages that .* was applied to"):
            trainer.train()
    below = build(Weighting, tiny_decoder, options)
    with pytest.raises(ValueError, match="'none' for Weighting, whose _compute_loss handles the advantages itself"):
        bridge.attach(below, MASK)
    with pytest.raises(ValueError, match=r"'none' for WeightingAbove, whose _generate_and_.* the advantages itself"):
        build(WeightingAbove, tmp_path / "nowhere", options, rule=MASK)


class WeightingMicroBatches(GRPOTrainer):
    """The same where a micro-batch is taken from the generation batch."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        return inputs | {"advantages": inputs["advantages"] * torch.linspace(0.5, 1.5, len(inputs["advantages"]))}


class HidesTheNames(RLOOTrainer):
    """Changes what its code does not name."""

    changed = "advantages"

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        return inputs | {self.changed: inputs[self.changed] / 2}


def test_advantages_that_change_between_generation_and_loss(tiny_decoder: Path, tmp_path: Path) -> None:
    options = GRPOConfig(**arguments(tmp_path, **REUSE))
    plain = update(build(WeightingMicroBatches, tiny_decoder, options, reward_funcs=closeness))
    ours = bridge.attach(build(WeightingMicroBatches, tiny_decoder, options, reward_funcs=closeness), RATIO)
    assert torch.equal(update(ours), plain)
    refused = "'none' for WeightingMicroBatches, whose _prepare_inputs handles the advantages itself"
    with pytest.raises(ValueError, match=refused):
        bridge.attach(build(WeightingMicroBatches, tiny_decoder, options), MASK)
    rloo = build(HidesTheNames, tiny_decoder, RLOOConfig(**arguments(tmp_path)), reward_funcs=closeness)
    rloo = bridge.attach(rloo, MASK)
    with pytest.raises(ValueError, match=r"advantages: expected the advantages that .* was applied to"):
        rloo.train()


class CopyingMicroBatches(GRPOTrainer):
    """Hands on the keys of TRL's micro-batches and no others."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        return {name: value for name, value in inputs.items() if not name.startswith("entropy_control_")}


def test_micro_batches_that_lose_what_travels(tiny_decoder: Path, tmp_path: Path) -> None:
    """A mask rule is in TRL's own advantages by then, unless it is to be applied in the training forward."""
    options = GRPOConfig(**arguments(tmp_path, optim="sgd", max_grad_norm=0.0, learning_rate=0.1))
    ours = build(bridge.EntropyControlledGRPOTrainer, tiny_decoder, options, rule=MASK, reward_funcs=closeness)
    expected = update(ours)
    copying = bridge.attach(build(CopyingMicroBatches, tiny_decoder, options, reward_funcs=closeness), MASK)
    # The coefficients are from a forward of another shape in float32.
    assert torch.linalg.norm(update(copying) - expected) < 1e-5 * torch.linalg.norm(expected)
    for rule, chosen in ((RATIO, {}), ("entropy-bonus(coefficient=0.2)", {}), (MASK, {"scoring": "one-pass"})):
        trainer = build(CopyingMicroBatches, tiny_decoder, options, reward_funcs=closeness)
        trainer = bridge.attach(trainer, rule, **chosen)
        with pytest.raises(ValueError, match=r"'none' for .*CopyingMicroBatches, which drops the keys"):
            trainer.train()


class DropsKeys(bridge.EntropyControlledGRPOTrainer):
    """Hands on the keys that it knows, after the generation batch was controlled."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        return {name: value for name, value in output.items() if not name.startswith("entropy_control_")}


def test_what_travels_with_the_rows_must_not_be_dropped(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = build(DropsKeys, tiny_decoder, GRPOConfig(**arguments(tmp_path)), rule=RATIO, reward_funcs=closeness)
    with pytest.raises(
        ValueError, match=r"'none' for DropsKeys, which drops the keys .* begin with 'entropy_control_'"
    ):
        trainer.train()


class Foreign(bridge.EntropyControlMixin):
    """The mixin over nothing of TRL's."""


def test_the_mixin_over_another_trainer_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="trainer: expected a class derived from GRPOTrainer or RLOOTrainer, received F"
    ):
        Foreign("model", args=GRPOConfig(**arguments(tmp_path)))


class ReadsTokens(GRPOTrainer):
    """A loss of its own that reads advantages of shape (B, T) and says so."""

    loss_reads_token_advantages = True

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        length = inputs["completion_ids"].shape[1]
        log_probs, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, length, compute_entropy=True)
        advantages = inputs["advantages"]
        advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
        return -(advantages * log_probs * inputs["completion_mask"]).sum() / inputs["num_items_in_batch"]


def test_a_loss_that_reads_token_advantages_may_say_so(tiny_decoder: Path, tmp_path: Path) -> None:
    options = GRPOConfig(**arguments(tmp_path, optim="sgd", max_grad_norm=0.0, learning_rate=0.1))
    own = update(bridge.attach(build(ReadsTokens, tiny_decoder, options, reward_funcs=closeness), MASK))
    trls = update(build(bridge.EntropyControlledGRPOTrainer, tiny_decoder, options, rule=MASK, reward_funcs=closeness))
    # dapo at ratio 1 is the same loss: r A and A log p have one gradient; float32 rounding of the parameters.
    assert torch.linalg.norm(own - trls) < 1e-5 * torch.linalg.norm(trls)
    with pytest.raises(ValueError, match="'none' for ReadsTokens"):
        bridge.attach(build(ReadsTokens, tiny_decoder, options, reward_funcs=closeness), RATIO)


# -- rows that change after generation --------------------------------------------------------------------------------


def gather_rows(output: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    return {k: v[rows] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in output.items()}


class FilteredGroups(GRPOTrainer):
    """Keeps every second row and repeats it: other rows in as many places."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        rows = torch.arange(len(output["completion_ids"]))
        return gather_rows(output, rows // 2 * 2)


class Dropping(GRPOTrainer):
    """Keeps the first half of the rows."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        return gather_rows(output, torch.arange(len(output["completion_ids"]) // 2))


class Replaying(GRPOTrainer):
    """Puts the rows of the first generation batch, with their old log-probabilities, in place of every later one."""

    kept: dict[str, Any] | None = None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.kept = self.kept or output
        return dict(self.kept)


class Copying(GRPOTrainer):
    """Knows the keys of TRL's dictionary and no others, and turns the rows round."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        names = ["prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "old_per_token_logps"]
        turned = gather_rows(
            {n: output[n] for n in names if n in output}, torch.arange(len(output["advantages"])).flip(0)
        )
        return turned | {"num_items_in_batch": output["num_items_in_batch"]}


class InPlace(GRPOTrainer):
    """Puts the first row's tokens in place of the last one's, and nothing else."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_per_token_logps"):
            if name in output:
                output[name][-1] = output[name][0]
        return output


class Late(GRPOTrainer):
    """Does so when the micro-batches are handed out, after the rule was applied."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        ids = inputs["completion_ids"].clone()
        ids[-1] = ids[0].flip(0)
        return inputs | {"completion_ids": ids}


class Scratch(GRPOTrainer):
    """Replaces the generation of a batch, and does not call TRL's."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        raise NotImplementedError


@pytest.mark.parametrize("kind", [FilteredGroups, Dropping, Replaying, Copying, InPlace])
@pytest.mark.parametrize("iterations", [1, 2])
def test_statistics_are_those_of_the_rows_that_are_trained_on(
    tiny_decoder: Path, tmp_path: Path, kind: type, iterations: int
) -> None:
    options = arguments(tmp_path, **(REUSE | {"num_iterations": iterations, "max_steps": 2 * iterations}))
    options |= {"save_batches": 1}
    trainer = build(kind, tiny_decoder, bridge.EntropyControlledGRPOConfig(**options), reward_funcs=closeness)
    trainer = bridge.attach(trainer, "clip-b(mu=0.5)|kl-cov(fraction=0.1)")
    decide, seen = trainer._generation.decide, []

    def watched(output: dict[str, Any], statistics: Any) -> dict[str, Any]:
        with torch.no_grad():
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            length = output["completion_ids"].shape[1]
            log_p = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1].log_softmax(-1)
        expected = log_p.gather(-1, output["completion_ids"].unsqueeze(-1)).squeeze(-1)
        changes = decide(output, statistics)
        valid = output["completion_mask"].bool()
        scored = changes["entropy_control_scored_log_probs"]
        # The present policy's, by a forward of another shape in float32.
        torch.testing.assert_close(scored[valid], expected[valid], rtol=1e-5, atol=1e-5)
        seen.append(changes)
        return changes

    trainer._generation.decide = watched
    trainer.train()
    assert len(seen) == 2
    assert trainer.state.global_step == 2 * iterations


@pytest.mark.parametrize("rule", ["w-reinforce", "w-reinforce|ppo-clip"])
@pytest.mark.parametrize("kind", [FilteredGroups, Dropping, Replaying])
def test_rewards_go_with_their_rows(tiny_decoder: Path, tmp_path: Path, kind: type, rule: str) -> None:
    trainer = build(kind, tiny_decoder, GRPOConfig(**arguments(tmp_path, max_steps=2)))
    trainer = bridge.attach(trainer, rule)
    decide, texts = trainer._generation.decide, trainer.processing_class

    def watched(output: dict[str, Any], statistics: Any) -> dict[str, Any]:
        sums = []
        for prompt, answer in zip(output["prompt_ids"], output["completion_ids"], strict=True):
            target = int(texts.decode(prompt, skip_special_tokens=True).rstrip("="))
            digits = texts.decode(answer, skip_special_tokens=True).split("+")
            right = len(digits) == 4 and all(d.isdigit() and len(d) == 1 for d in digits)
            sums.append(float(right and sum(map(int, digits)) == target))
        assert output["entropy_control_rewards"].tolist() == sums
        return decide(output, statistics)

    trainer._generation.decide = watched
    trainer.train()


def test_rows_without_their_rewards_are_named(tiny_decoder: Path, tmp_path: Path) -> None:
    options = GRPOConfig(**arguments(tmp_path))
    for kind in (Copying, InPlace):
        expected = (
            f"entropy_control_rewards: expected a tensor for the rows of {kind.__name__}, which drops or replaces"
        )
        trainer = bridge.attach(build(kind, tiny_decoder, options), "w-reinforce")
        with pytest.raises(ValueError, match=expected):
            trainer.train()
    with pytest.raises(
        ValueError, match="does not read rewards for Scratch, whose _generate_and_score_completions does"
    ):
        bridge.attach(build(Scratch, tiny_decoder, options), "w-reinforce")


@pytest.mark.parametrize("rule", [MASK, RATIO])
def test_rows_that_are_replaced_after_the_rule_are_named(tiny_decoder: Path, tmp_path: Path, rule: str) -> None:
    options = bridge.EntropyControlledGRPOConfig(**arguments(tmp_path, scoring="batch"))
    trainer = bridge.attach(build(Late, tiny_decoder, options, reward_funcs=closeness), rule)
    with pytest.raises(
        ValueError, match="'none' for EntropyControlledLate, which replaces rows after the rule was app"
    ):
        trainer.train()


# -- arguments --------------------------------------------------------------------------------------------------------


class ConfigurationFirst(GRPOTrainer):
    def __init__(self, args: GRPOConfig, model: str, **rest: Any) -> None:
        super().__init__(model=model, args=args, **rest)


class Controlled(bridge.EntropyControlMixin, ConfigurationFirst):
    pass


class MakesIts(GRPOTrainer):
    """Makes the configuration by itself."""

    folder: str

    def __init__(self, model: str, **rest: Any) -> None:
        super().__init__(model, args=GRPOConfig(**arguments(Path(self.folder))), **rest)


def test_the_configuration_is_found_wherever_it_stands(tiny_decoder: Path, tmp_path: Path) -> None:
    from entropy_theory.testbed import decoder, sum_task

    rest = {
        "reward_funcs": sum_task.reward,
        "train_dataset": sum_task.dataset(64, 0),
        "processing_class": decoder.build_tokenizer(),
    }
    config = bridge.EntropyControlledGRPOConfig(**arguments(tmp_path / "first"), rule="clip-b(mu=2)")
    trainer = Controlled(config, str(tiny_decoder), **rest)
    assert (str(trainer.rule), trainer.batches_folder) == ("clip-b(mu=2)", tmp_path / "first" / "batches")
    kind = type("ControlledMakesIts", (bridge.EntropyControlMixin, MakesIts), {"folder": str(tmp_path / "made")})
    assert kind(str(tiny_decoder), rule="steer", **rest).batches_folder == tmp_path / "made" / "batches"


# -- RLOO -------------------------------------------------------------------------------------------------------------


def rloo(model: Path, out: Path, kind: type = RLOOTrainer, rule: str | None = None, **changes: Any) -> Any:
    options = arguments(
        out, **({"max_steps": 2, "learning_rate": 2e-2, "optim": "sgd", "max_grad_norm": 0.0} | changes)
    )
    observed = {"observe": options.pop("observe")} if "observe" in options else {}
    scoring = {"scoring": options.pop("scoring")} if "scoring" in options else {}
    trainer = build(kind, model, RLOOConfig(**options), reward_funcs=closeness)
    return trainer if rule is None else bridge.attach(trainer, rule, **observed, **scoring)


LAYOUTS = [
    {},
    {"num_iterations": 2, "max_steps": 4},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16},
    {"beta": 0.05},
]


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_rloo_under_the_neutral_rule_is_trls_to_the_bit(
    tiny_decoder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = update(rloo(tiny_decoder, tmp_path, **changes))
    ours = rloo(tiny_decoder, tmp_path, rule="none", observe=["clip-v", "ppo-clip", "kl-cov"], **changes)
    assert torch.equal(update(ours), plain)
    assert torch.linalg.norm(plain) > 0


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_rloo_with_coefficients_that_are_its_advantages(
    tiny_decoder: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of coefficients has the gradient of TRL's, its clip of sequences included."""
    plain = update(rloo(tiny_decoder, tmp_path, epsilon=0.05, **changes))
    trainer = rloo(tiny_decoder, tmp_path, rule="none", epsilon=0.05, **changes)
    decide = trainer._generation.decide

    def with_coefficients(output: dict[str, Any], statistics: Any) -> dict[str, Any]:
        monkeypatch.setattr(torch, "equal", lambda *_: False)  # as if the rule had changed something
        changes = decide(output, statistics)
        monkeypatch.undo()
        assert "entropy_control_coefficients" in changes
        return changes

    trainer._generation.decide = with_coefficients
    # The same sums in another order, float32.
    assert torch.linalg.norm(update(trainer) - plain) < 1e-5 * torch.linalg.norm(plain)


def test_rloo_under_a_mask_rule_against_plain_torch(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = rloo(tiny_decoder, tmp_path, rule=MASK, max_steps=1, learning_rate=1.0)
    kept: dict[str, Any] = {}
    decide = trainer._generation.decide

    def watched(output: dict[str, Any], statistics: Any) -> dict[str, Any]:
        kept.update(output)
        return decide(output, statistics)

    trainer._generation.decide = watched
    found = update(trainer)
    model = rloo(tiny_decoder, tmp_path).model
    ids = torch.cat([kept["prompt_ids"], kept["completion_ids"]], dim=1)
    attention = torch.cat([kept["prompt_mask"], kept["completion_mask"]], dim=1)
    valid = kept["completion_mask"].bool()
    log_p = model(input_ids=ids, attention_mask=attention).logits[:, -valid.shape[1] - 1 : -1].log_softmax(-1)
    picked = log_p.gather(-1, kept["completion_ids"].unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        score = picked.exp() * (picked - (log_p.exp() * log_p).sum(-1))
        keep = valid & ((score - score[valid].mean()).abs() <= 0.3 * score[valid].std(unbiased=False))
    assert 0 < keep.sum() < valid.sum()
    # RLOO: a mean over sequences of the sum over their tokens, here over those that are kept.
    (-(kept["advantages"].unsqueeze(1) * picked * keep).sum() / len(keep)).backward()
    expected = torch.cat([-p.grad.flatten() for p in model.parameters()])
    assert torch.linalg.norm(found - expected) < 1e-5 * torch.linalg.norm(expected)  # float32 sums in another order


def test_rloo_under_a_ratio_based_rule(tiny_decoder: Path, tmp_path: Path) -> None:
    """At ratio 1 nothing is clipped, so the first update is TRL's; at the second the rule clips tokens."""
    first = {"num_iterations": 2, "max_steps": 1}
    plain = update(rloo(tiny_decoder, tmp_path, **first))
    ours = update(rloo(tiny_decoder, tmp_path, rule=RATIO, **first))
    assert torch.linalg.norm(ours - plain) < 1e-5 * torch.linalg.norm(plain)
    trainer = rloo(tiny_decoder, tmp_path, rule=RATIO, num_iterations=2, max_steps=2, learning_rate=0.2)
    trainer.train()
    shares = [line["entropy_control/dropped_share"] for line in trainer.state.log_history[:-1]]
    assert shares[0] == 0 < shares[1]


def test_rloo_as_a_class_scored_in_every_way(tiny_decoder: Path, tmp_path: Path) -> None:
    updates = []
    for scoring in ("one-pass", "batch", "auto"):
        options = arguments(tmp_path, scoring=scoring, optim="sgd", max_grad_norm=0.0, learning_rate=0.1, rule=MASK)
        config = bridge.EntropyControlledRLOOConfig(**options)
        trainer = build(bridge.EntropyControlledRLOOTrainer, tiny_decoder, config, reward_funcs=closeness)
        updates.append(update(trainer))
        assert trainer.state.log_history[0]["entropy_control/dropped_share"] > 0
    one_pass, batch, beside = updates
    # The same mask; the coefficients are from forwards of other shapes in float32.
    assert torch.linalg.norm(one_pass - batch) < 1e-5 * torch.linalg.norm(batch)
    assert torch.linalg.norm(beside - batch) < 1e-5 * torch.linalg.norm(batch)


def test_rloo_under_an_entropy_term(tiny_decoder: Path, tmp_path: Path) -> None:
    entropies = []
    for rule in ("none", "entropy-bonus(coefficient=0.5)"):
        trainer = rloo(tiny_decoder, tmp_path, rule=rule, max_steps=8, optim="adamw_torch", learning_rate=1e-3)
        trainer.train()
        entropies.append(trainer.state.log_history[-2]["entropy_control/entropy"])
    assert entropies[1] > entropies[0]
