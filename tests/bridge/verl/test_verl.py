"""Rules in verl's terms: pure functions everywhere; verl's losses, containers and configuration where it is here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_fixtures import CLIP_B, SMALL_REGIMES, batch_of, load

from entropy_theory.bridge.verl import advantages_under_rule, apply_to_batch
from entropy_theory.bridge.verl.losses import check_live_rule, loss_name, policy_loss
from entropy_theory.control import TokenBatch, aggregate, rule

ROOT = Path(__file__).parents[3]
CLIP_B_RULES = {
    "clip_b": "clip-b",
    "clip_b@mu1": "clip-b(mu=1)",
    "clip_b@mu0.5": "clip-b(mu=0.5)",
    "clip_b@mu0.25": "clip-b(mu=0.25)",
}
CLIP_V_RULES = {
    "clip_v": "clip-v",
    "clip_v@mu2": "clip-v(mu=2)",
    "clip_v@uncapped": "clip-v(mu=1, max_fraction=1)",
    "clip_v@uncapped_low_mu": "clip-v(mu=0.1, max_fraction=1)",
    "clip_v@capped": "clip-v(mu=0.1, max_fraction=0.01)",
    "clip_v@cap_loose": "clip-v(mu=1, max_fraction=0.2)",
}
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def made_up(rows: int = 12, width: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with rows of different length, off-policy enough for every clip to bite."""
    draw = torch.Generator().manual_seed(seed)
    old = -3.0 * torch.rand(rows, width, generator=draw) - 0.01
    lengths = torch.randint(1, width + 1, (rows, 1), generator=draw)
    mask = (torch.arange(width) < lengths).long()
    return {
        "old_log_probs": old,
        "log_probs": old + 0.5 * torch.randn(rows, width, generator=draw),
        "entropy": 2.0 * torch.rand(rows, width, generator=draw),
        "baseline": 0.1 * torch.rand(rows, width, generator=draw),
        "advantages": torch.randn(rows, 1, generator=draw).expand(rows, width) * mask,
        "response_mask": mask,
    }


# -- pure functions, without verl -------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", SMALL_REGIMES)
@pytest.mark.parametrize("variant", [*CLIP_B_RULES, *CLIP_V_RULES])
def test_the_update_is_the_official_one_although_verl_counts_every_token(regime: str, variant: str) -> None:
    # The official code takes dropped tokens out of the mask and so out of the mean; we leave verl's mask and scale.
    data, spec = load("small", regime), {**CLIP_B_RULES, **CLIP_V_RULES}[variant]
    source = "" if variant in CLIP_B else "baseline"
    batch = batch_of(data)
    out = advantages_under_rule(
        spec,
        batch.log_probs,
        batch.entropy,
        batch.advantages,
        batch.completion_mask,
        baseline=batch.baseline if source else None,
    )
    kept = torch.from_numpy(data[f"{variant}.keep"])
    official = aggregate(batch.advantages, kept)  # the official surrogate at ratio 1, as a mean over its own mask
    ours = aggregate(out.advantages, batch.completion_mask)
    assert torch.equal(out.advantages != 0, kept & (batch.advantages != 0))
    torch.testing.assert_close(ours, official, rtol=1e-5, atol=1e-7)  # float32 sums of a few hundred terms


@pytest.mark.parametrize("mode", MODES)
def test_each_aggregation_gives_the_loss_of_the_smaller_mask(mode: str) -> None:
    batch = made_up()
    spec = "high-entropy(denominator='kept')"
    out = advantages_under_rule(
        spec, batch["old_log_probs"], batch["entropy"], batch["advantages"], batch["response_mask"], loss_agg_mode=mode
    )
    mask = batch["response_mask"].bool()
    threshold = torch.quantile(batch["entropy"][mask], 0.8)
    kept = mask & (batch["entropy"] >= threshold)
    rows = mask.any(1).sum()  # verl divides by the rows of the mini-batch, whatever was dropped in them
    per_row = {
        "token-mean": lambda: (batch["advantages"] * kept).sum() / kept.sum(),
        "token-sum": lambda: (batch["advantages"] * kept).sum(),
        "seq-mean-token-sum": lambda: (batch["advantages"] * kept).sum() / rows,
        "seq-mean-token-mean": lambda: ((batch["advantages"] * kept).sum(1) / kept.sum(1).clamp_min(1)).sum() / rows,
        "seq-mean-token-sum-norm": lambda: (batch["advantages"] * kept).sum() / rows / mask.shape[1],
    }
    torch.testing.assert_close(aggregate(out.advantages, mask, mode), per_row[mode](), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "spec", ["clip-b(mu=0.5)", "clip-v(mu=0.1, max_fraction=0.05)", "high-entropy(denominator='kept')"]
)
def test_ranks_that_share_a_batch_decide_as_one(spec: str) -> None:
    batch, cuts = made_up(), [slice(0, 5), slice(5, 5), slice(5, 12)]  # the middle rank has no row at all
    fields = ("old_log_probs", "entropy", "advantages", "response_mask")
    whole = advantages_under_rule(spec, *(batch[f] for f in fields), baseline=batch["baseline"])
    meeting, brought = threading.Barrier(3, timeout=60), [None] * 3

    def run(rank: int) -> torch.Tensor:
        def meet(values: torch.Tensor, combine: Callable[[list], torch.Tensor]) -> torch.Tensor:
            brought[rank] = values
            meeting.wait()
            result = combine(list(brought))
            meeting.wait()  # nobody brings the next values before all have read these
            return result

        part = {name: value[cuts[rank]] for name, value in batch.items()}
        collectives = {
            "reduce_sum": lambda values: meet(values, lambda all_ranks: torch.stack(all_ranks).sum(0)),
            "gather": lambda values: meet(values, torch.cat),
        }
        out = advantages_under_rule(
            spec, *(part[f] for f in fields), baseline=part["baseline"], rank=rank, world_size=3, **collectives
        )
        return out.advantages

    with ThreadPoolExecutor(3) as pool:
        assert torch.equal(torch.cat(list(pool.map(run, range(3)))), whole.advantages)


def test_nested_tensors_give_what_padded_ones_give() -> None:
    padded = made_up()
    lengths = padded["response_mask"].sum(1).tolist()

    def jagged(values: torch.Tensor) -> torch.Tensor:
        return torch.nested.as_nested_tensor(
            [row[:n] for row, n in zip(values, lengths, strict=True)], layout=torch.jagged
        )

    nested = {name: jagged(value) for name, value in padded.items()}
    expected = apply_to_batch("clip-v(mu=0.5, max_fraction=None)", padded, observe=("clip-b(mu=0.5)",))
    found = apply_to_batch("clip-v(mu=0.5, max_fraction=None)", nested, observe=("clip-b(mu=0.5)",))
    assert found.metrics == expected.metrics
    assert 0 < found.metrics["entropy_control/dropped_share"] < 1
    assert found.metrics["entropy_control/observed/clip-b(mu=0.5)/dropped_share"] > 0
    assert nested["advantages"].offsets().diff().tolist() == lengths
    assert torch.equal(nested["advantages"].to_padded_tensor(0.0), padded["advantages"][:, : max(lengths)])


def test_rewards_and_prompts_are_found_under_verls_names() -> None:
    batch = made_up(rows=4)
    scores = torch.zeros(4, 9)
    scores[torch.arange(4), batch["response_mask"].sum(1) - 1] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    batch["rm_scores"], batch["uid"] = scores, np.array(["b", "b", "a", "a"], dtype=object)
    before = batch["advantages"].clone()
    apply_to_batch("w-reinforce", batch)
    right = scores.sum(1) > 0
    direct = rule("w-reinforce").apply(
        TokenBatch(batch["old_log_probs"], batch["entropy"], before, batch["response_mask"], rewards=right.float())
    )
    assert torch.equal(batch["advantages"], direct.coefficients)


def test_state_and_draws_are_carried() -> None:
    batch = made_up()
    arguments = [batch[f] for f in ("old_log_probs", "entropy", "advantages", "response_mask")]
    controller = "stare(adaptive=True)"
    first = advantages_under_rule(controller, *arguments)
    second = advantages_under_rule(controller, *arguments, state=first.state)
    assert second.state != first.state  # the closed loop has moved on
    seeds = [
        advantages_under_rule("random-mask(fraction=0.3)", *arguments, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(seeds[0].advantages, seeds[1].advantages)
    assert not torch.equal(seeds[0].advantages, seeds[2].advantages)


def test_a_batch_without_valid_tokens_leaves_nothing_and_says_so() -> None:
    x = torch.zeros(2, 3)
    out = advantages_under_rule("clip-b", x, x, x + 1, x, state={"kept": 1})
    assert not out.advantages.any()
    assert out.metrics == {"entropy_control/empty_batch": 1.0}
    assert out.state == {"kept": 1}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ppo-clip", "ratio-based part 'ppo-clip' belongs into the policy loss"),
        ("entropy-bonus", "actor.entropy_coeff"),
        ("clip-v", "centered_discriminant"),
        ("w-reinforce", "rewards"),
    ],
)
def test_what_advantages_cannot_carry_is_refused_by_name(spec: str, says: str) -> None:
    x = -torch.ones(1, 2)
    with pytest.raises(ValueError, match=says):
        advantages_under_rule(spec, x, -x, x, -x)


def test_a_rule_that_reads_the_entropy_says_so_when_there_is_none() -> None:
    x = -torch.ones(1, 2)
    with pytest.raises(ValueError, match="entropy: expected a tensor"):
        advantages_under_rule("clip-b", x, None, x, -x)
    assert torch.equal(advantages_under_rule("none", x, None, x, -x).advantages, x)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("clip-b|ppo-clip", "the ratio-based part alone"),
        ("steer", "entropy: expected a tensor"),
        ("entropy-ratio", "old_entropy"),
        ("kl-cov", "kl-cov@micro-batch"),
        ("clip-cov", "clip-cov@micro-batch"),
        ("bapo", "bapo@micro-batch"),
        ("ppo-clip|clip-b", "denominator='valid'"),
        ("ppo-clip|entropy-bonus", "entropy"),
    ],
)
def test_what_a_policy_loss_cannot_compute_is_refused_by_name(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        policy_loss(spec)


def test_a_fork_that_passes_the_entropy_gets_its_rules() -> None:
    check_live_rule(rule("entropy-ratio"), entropy=True)
    check_live_rule(rule("steer"), entropy=True, micro_batch_statistics=True)


# -- with the installed verl ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core_algos():
    pytest.importorskip("verl", reason="verl is not installed (extra 'verl')")
    from verl.trainer.ppo import core_algos

    return core_algos


@pytest.fixture
def actor_config(core_algos):
    from verl.workers.config import ActorConfig, PolicyLossConfig

    def make(policy_loss: dict | None = None, sizes: dict | None = None, **options):
        config = ActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            policy_loss=PolicyLossConfig(**(policy_loss or {})),
            **options,
        )
        config.global_batch_info.update(sizes or {})
        return config

    return make


# our rule; verl's loss and its settings
_COV = {"clip_cov_ratio": 0.1, "clip_cov_lb": -1.0, "clip_cov_ub": 2.0}
SAME = [
    ("ppo-clip", "vanilla", {}, {}),
    ("clip-higher", "vanilla", {"clip_ratio_high": 0.28, "clip_ratio_c": 10.0}, {}),
    ("ppo-clip(epsilon_high=0.28, dual_clip=1.5)", "vanilla", {"clip_ratio_high": 0.28, "clip_ratio_c": 1.5}, {}),
    ("cispo(epsilon_low=0.2, epsilon_high=0.28)", "cispo", {"clip_ratio_high": 0.28}, {}),
    ("gspo(epsilon_low=0.03, epsilon_high=0.04)", "gspo", {"clip_ratio_low": 0.03, "clip_ratio_high": 0.04}, {}),
    ("gpg", "gpg", {}, {}),
    ("dppo", "dppo_tv", {"clip_ratio_low": 0.1, "clip_ratio_high": 0.1, "clip_ratio_c": 20.0}, {}),
    (
        "dppo(divergence='kl', low=0.02, high=0.02)",
        "dppo_kl",
        {"clip_ratio_low": 0.02, "clip_ratio_high": 0.02, "clip_ratio_c": 20.0},
        {},
    ),
    ("dro(beta=0.5)", "dro", {}, {"dro_beta": 0.5}),
    ("clip-cov(fraction=0.1, lower=-1, upper=2, epsilon_low=0.2, epsilon_high=0.2)@micro-batch", "clip_cov", {}, _COV),
    ("kl-cov(fraction=0.1, beta=0.7)@micro-batch", "kl_cov", {}, {"kl_cov_ratio": 0.1, "ppo_kl_coef": 0.7}),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("spec", "name", "options", "loss_options"), SAME, ids=[one[1] + str(i) for i, one in enumerate(SAME)]
)
@pytest.mark.parametrize("weights", [False, True], ids=["plain", "rollout-weights"])
def test_our_loss_is_verls_own_in_value_and_gradient(
    core_algos, actor_config, spec: str, name: str, options: dict, loss_options: dict, mode: str, weights: bool
) -> None:
    from entropy_theory.bridge.verl.losses import register_loss

    batch = made_up()
    batch["response_mask"][3] = 0  # a padding row of verl's
    sizes = {"dp_size": 2, "batch_num_tokens": 97, "global_batch_size": 24, "loss_scale_factor": 16}
    config = actor_config(loss_options, sizes, **options)
    rollout = torch.rand(batch["log_probs"].shape, generator=torch.Generator().manual_seed(5)) if weights else None
    found = []
    for loss in (register_loss(spec), name):
        log_prob = batch["log_probs"].clone().requires_grad_()
        torch.manual_seed(7)
        value, metrics = core_algos.get_policy_loss_fn(loss)(
            old_log_prob=batch["old_log_probs"],
            log_prob=log_prob,
            advantages=batch["advantages"],
            response_mask=batch["response_mask"].bool(),
            loss_agg_mode=mode,
            config=config,
            rollout_is_weights=rollout,
        )
        value.backward()
        found.append((value.detach(), log_prob.grad, metrics))
    (ours, our_gradient, our_metrics), (theirs, gradient, metrics) = found
    assert gradient.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # float32, another order of operations
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-5, atol=1e-7)
    if name in ("vanilla", "gspo", "clip_cov"):
        assert our_metrics["actor/ppo_kl"] == pytest.approx(metrics["actor/ppo_kl"], abs=1e-6)


def test_sapo_and_gmpo_are_verls_own_where_verl_fixes_the_aggregation(core_algos, actor_config) -> None:
    # verl's sapo always means by sequence, and its geo_mean over all rows without looking at the global sizes.
    from entropy_theory.bridge.verl.losses import register_loss

    batch = made_up()
    config = actor_config(clip_ratio_low=0.4, clip_ratio_high=0.4)
    for spec, name in (("sapo", "sapo"), ("gmpo", "geo_mean")):
        gradients = []
        for loss in (register_loss(spec), name):
            log_prob = batch["log_probs"].clone().requires_grad_()
            value, _ = core_algos.get_policy_loss_fn(loss)(
                batch["old_log_probs"],
                log_prob,
                batch["advantages"],
                batch["response_mask"],
                "seq-mean-token-mean",
                config,
            )
            value.backward()
            gradients.append(torch.cat([value.detach().reshape(1), log_prob.grad.flatten()]))
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


def test_a_micro_batch_of_padding_has_a_zero_loss_that_can_be_differentiated(core_algos, actor_config) -> None:
    log_prob = torch.full((1, 4), -1.0, requires_grad=True)
    loss = policy_loss("clip-higher")
    value, _ = loss(log_prob.detach(), log_prob, torch.zeros(1, 4), torch.zeros(1, 4), config=actor_config())
    value.backward()
    assert value.item() == 0
    assert not log_prob.grad.any()


def test_micro_batches_and_ranks_add_up_to_the_loss_of_the_batch(core_algos, actor_config) -> None:
    batch = made_up()
    mask = batch["response_mask"]
    gradients = []
    for parts, ranks in (([slice(0, 12)], 1), ([slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)], 2)):
        config = actor_config(sizes={"dp_size": ranks, "batch_num_tokens": int(mask.sum()), "global_batch_size": 12})
        log_prob = batch["log_probs"].clone().requires_grad_()
        for part in parts:
            fields = [batch[f][part] for f in ("old_log_probs", "advantages", "response_mask")]
            value, _ = policy_loss("clip-higher")(fields[0], log_prob[part], *fields[1:], config=config)
            (value / ranks).backward()  # verl averages gradients over ranks
        gradients.append(log_prob.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=0)  # one division, in another place


def test_dataproto_round_trip_and_verls_own_advantages(core_algos) -> None:
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    batch = made_up()
    scores = torch.zeros(12, 9)
    scores[torch.arange(12), batch["response_mask"].sum(1) - 1] = (torch.arange(12) % 3 == 0).float()
    data = DataProto.from_dict(
        tensors={
            "old_log_probs": batch["old_log_probs"],
            "entropys": batch["entropy"],
            "response_mask": batch["response_mask"],
            "token_level_rewards": scores,
        },
        non_tensors={"uid": np.array([f"prompt{i // 4}" for i in range(12)], dtype=object)},
    )
    data = compute_advantage(data, adv_estimator="grpo", num_repeat=4)
    before = data.batch["advantages"].clone()
    untouched = apply_to_batch("none", data)
    assert torch.equal(data.batch["advantages"], before)
    assert untouched.metrics["entropy_control/dropped"] == 0
    result = apply_to_batch("clip-b(mu=0.5, denominator='valid')", data)
    changed = data.batch["advantages"] != before
    assert int(changed.sum()) == result.metrics["entropy_control/dropped"] > 0
    assert (before[changed] < 0).all()  # Clip_B touches negative tokens alone
    parts = data.chunk(3)
    assert torch.equal(torch.cat([part.batch["advantages"] for part in parts]), data.batch["advantages"])


def test_rules_are_registered_under_names_that_verl_finds(core_algos) -> None:
    from entropy_theory.bridge.verl.losses import register_loss

    name = register_loss("clip-higher(epsilon_high=0.3)")
    assert name == loss_name("clip-higher(epsilon_high=0.3)") == core_algos.get_policy_loss_fn(name).__name__
    assert register_loss("kl-cov@micro-batch") in core_algos.POLICY_LOSS_REGISTRY


@pytest.fixture(scope="module")
def external(core_algos):
    pytest.importorskip("transfer_queue", reason="TransferQueue is not installed (extra 'verl')")
    from entropy_theory.bridge.verl import trainer

    return trainer


def composed(*overrides: str):
    """The example configuration, composed by verl's own means."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "docs" / "examples"), version_base=None):
        return compose("verl_clip_v", overrides=["actor_rollout_ref.model.path=nowhere", *overrides])


def test_the_example_configuration_is_one_that_verl_accepts(external) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = composed()
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss.loss_mode == "entropy_theory:clip-higher"
    found = get_trainer_cls(config.trainer.v1.trainer_mode)
    assert issubclass(found, PPOTrainerSync)
    assert found.__mro__.index(external.EntropyControlMixin) < found.__mro__.index(PPOTrainerSync)
    trainer = found(config)
    assert [str(trainer.rule), str(trainer.batch_rule)] == ["clip-v|clip-higher", "clip-v"]
    # verl chooses buffers and checkpoints by the name of the mode: under our name a synchronous run would get others
    assert trainer.trainer_mode == "sync"
    assert type(trainer.replay_buffer) is ReplayBuffer


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_the_other_modes_resolve_and_keep_verls_own_settings(external, mode: str) -> None:
    from verl.trainer.ppo.v1 import get_trainer_cls

    overrides = [f"trainer.v1.trainer_mode=entropy_theory_{mode}", "data.train_batch_size=256"]
    if mode == "separate_async":
        rollout = "actor_rollout_ref.rollout"
        overrides += [
            f"{rollout}.nnodes=1",
            f"{rollout}.n_gpus_per_node=1",
            f"{rollout}.checkpoint_engine.backend=nccl",
        ]
    trainer = get_trainer_cls(f"entropy_theory_{mode}")(composed(*overrides))
    assert trainer.trainer_mode == mode
    assert trainer.parameter_sync_step == (4 if mode == "separate_async" else 1)


_RULE = "trainer.v1.entropy_theory.rule"
_LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([f"{_RULE}=null"], "rule: expected a rule"),
        ([f"{_RULE}=clip-c"], "did you mean"),
        (["+trainer.v1.entropy_theory.seed=1"], "only rule, rule_seed and observe"),
        (["trainer.v1.entropy_theory.observe=[ppo-clip]"], "belongs into the policy loss"),
        ([f"{_RULE}=entropy-bonus|clip-higher"], "actor.entropy_coeff"),
        ([f"{_LOSS}=vanilla"], "'entropy_theory:clip-higher', the ratio-based part"),
        (["actor_rollout_ref.model.use_fused_kernels=true"], "statistics of the logits"),
        ([f"{_RULE}='clip-b|kl-cov'", f"{_LOSS}=entropy_theory:kl-cov"], "kl-cov@micro-batch"),
        ([f"{_RULE}='clip-b|steer'", f"{_LOSS}=entropy_theory:steer"], "entropy"),
        ([f"{_RULE}='clip-b|dro'", f"{_LOSS}=entropy_theory:dro"], "no penalty after a batch rule"),
        (
            [f"{_RULE}='clip-b|clip-low(epsilon_low=0.05)'", f"{_LOSS}='entropy_theory:clip-low(epsilon_low=0.05)'"],
            "ENTROPY_THEORY_RULES",
        ),
    ],
)
def test_a_configuration_that_would_run_otherwise_is_refused(external, overrides: list[str], says: str) -> None:
    from verl.trainer.ppo.v1 import get_trainer_cls

    with pytest.raises(ValueError, match=says):
        get_trainer_cls("entropy_theory_sync")(composed(*overrides))


def test_rules_of_the_environment_are_registered_with_their_parameters(external, core_algos, monkeypatch) -> None:
    monkeypatch.setenv(
        "ENTROPY_THEORY_RULES", "clip-b(mu=1)|ppo-clip(epsilon_low=0.15); kl-cov(beta=2)@micro-batch;clip-b"
    )
    names = external.register_losses()
    assert names[-2:] == ["entropy_theory:ppo-clip(epsilon_low=0.15)", "entropy_theory:kl-cov(beta=2)@micro-batch"]
    assert set(names) <= set(core_algos.POLICY_LOSS_REGISTRY)
    defaults = {"ce-gppo", "cispo", "clip-higher", "clip-low", "dcpo", "dppo", "dro", "gmpo", "gpg", "gspo", "sapo"}
    assert {f"entropy_theory:{name}" for name in defaults} <= set(names)


def test_another_release_of_verl_is_refused_with_the_range(external) -> None:
    external.check_verl_version("0.9.1")
    for other in ("0.8.0", "0.10.0"):
        with pytest.raises(ValueError, match=r">=0\.9,<0\.10"):
            external.check_verl_version(other)


def test_the_environment_chooses_the_engine_that_scores_the_baseline(external, monkeypatch) -> None:
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    monkeypatch.delenv("VERL_ENGINE_VENDOR", raising=False)
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is FSDPEngineWithLMHead
    monkeypatch.setenv("VERL_ENGINE_VENDOR", "entropy_theory")
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is external.StatisticsEngine
    assert "entropy_theory" not in EngineRegistry.get_engine_cls("value_model", "fsdp2").__module__


def test_a_checkpoint_without_our_state_or_of_another_rule_is_refused(external, tmp_path: Path) -> None:
    path = tmp_path / external.CHECKPOINT
    with pytest.raises(ValueError, match="a checkpoint written under a rule"):
        external.read_rule_state(tmp_path, rule("clip-b"))
    path.write_text('{"format": 2}')
    with pytest.raises(ValueError, match="format 1"):
        external.read_rule_state(tmp_path, rule("clip-b"))
    path.write_text('{"format": 1, "rule": "clip-b", "rule_state": {"up": 1.5}}')
    assert external.read_rule_state(tmp_path, rule("clip-b")) == {"up": 1.5}
    with pytest.raises(ValueError, match="the checkpoint's"):
        external.read_rule_state(tmp_path, rule("clip-b", mu=1))


def test_a_step_of_the_v1_trainer_runs_on_two_ranks(core_algos, tmp_path: Path) -> None:
    pytest.importorskip("transfer_queue", reason="TransferQueue is not installed (extra 'verl')")
    script = Path(__file__).with_name("verl_step.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], capture_output=True, text=True, env=environment,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "verl step: all checks passed" in done.stdout
