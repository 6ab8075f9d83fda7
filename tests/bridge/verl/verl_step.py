"""One step of verl's V1 trainer on the CPU, in a process of its own: everything of it but the generating engine.

Real are the configuration, Ray, TransferQueue, two workers with verl's FSDP2 engine under gloo, old log-probabilities,
advantages, the update and the checkpoint's file of ours. The completions are made up here, where vLLM would put them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
os.environ |= {
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_VENDOR": "entropy_theory",
    "VERL_USE_EXTERNAL_MODULES": "verl_cpu,entropy_theory.bridge.verl_trainer",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    "RAY_AUTH_MODE": "disabled",  # a cluster of this process alone; with a token it writes into the home folder
}
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import pytest  # noqa: E402
import ray  # noqa: E402  after the environment that its workers inherit
import torch  # noqa: E402
import transfer_queue as tq  # noqa: E402
import verl  # noqa: E402, F401  loads the external modules
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402
from transfer_queue import KVBatchMeta  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup  # noqa: E402
from verl.trainer.ppo.v1 import get_trainer_cls  # noqa: E402
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402
from verl.workers.engine_workers import ActorRolloutRefWorker  # noqa: E402

VOCAB, MU, TEMPERATURE = 64, 0.5, 0.8
# STARE's gate is shut at a target of 0: it changes no weight, and its closed loop still has a state to keep
RULE = f"clip-v(mu={MU}, max_fraction=None)|stare(adaptive=True, target=0)|clip-higher"


class CPUWorker(ActorRolloutRefWorker):
    """verl's worker; it joins the process group itself, because verl asks for "cpu:gloo,cpu:gloo" on a CPU."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        torch.distributed.init_process_group(
            "gloo",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )


def tiny_model(folder: Path) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1", pad_token="0").save_pretrained(folder)
    return str(folder)


def configuration(folder: Path, model: str, rule: str) -> DictConfig:
    fp32 = "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
    with initialize_config_dir(str(ROOT / "docs" / "examples"), version_base=None):
        return compose(
            "verl_clip_v",
            overrides=[
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.model.use_remove_padding=false",
                "+actor_rollout_ref.model.override_config.attn_implementation=eager",
                "actor_rollout_ref.model.enable_gradient_checkpointing=false",
                "actor_rollout_ref.actor.use_torch_compile=false",
                "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
                "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
                f"+actor_rollout_ref.actor.fsdp_config.mixed_precision={fp32}",
                "actor_rollout_ref.actor.optim.lr=0.01",
                "actor_rollout_ref.actor.optim.total_training_steps=4",
                "actor_rollout_ref.actor.ppo_mini_batch_size=4",
                "actor_rollout_ref.rollout.n=4",
                f"actor_rollout_ref.rollout.temperature={TEMPERATURE}",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
                "data.train_batch_size=4",
                "trainer.n_gpus_per_node=2",
                f"trainer.default_local_dir={folder}",
                f"trainer.v1.entropy_theory.rule='{rule}'",
                "trainer.v1.entropy_theory.observe=['clip-b(mu=1)']",
                "transfer_queue.enable=true",
                "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
            ],
        )


@torch.no_grad()
def completions(rows: int, model: str) -> KVBatchMeta:
    """What the agent loop would have put into the queue: completions sampled from the model."""
    policy = LlamaForCausalLM.from_pretrained(model, attn_implementation="eager")
    draw = torch.Generator().manual_seed(1)
    keys, fields, tags = [], [], []
    for row in range(rows):
        p, t = 3 + row % 2, 4 + (5 * row) % 7
        ids, log_probs = torch.randint(2, VOCAB, (p,), generator=draw), []
        for _ in range(t):
            log_p = (policy(ids[None]).logits[0, -1] / TEMPERATURE).log_softmax(-1)
            token = torch.multinomial(log_p.exp(), 1, generator=draw)
            ids = torch.cat([ids, token])
            log_probs.append(log_p[token])
        reward = torch.zeros(t)
        reward[-1] = float(row in (0, 2, 3, 5, 9, 10))  # the last group has no right answer: A = 0
        mask = torch.ones(t, dtype=torch.int64)
        keys.append(f"prompt{row // 4}_{row % 4}_0")
        fields.append(
            {
                "uid": f"prompt{row // 4}",
                "prompts": ids[:p],
                "responses": ids[p:],
                "response_mask": mask,
                "loss_mask": mask,
                "input_ids": ids,
                "position_ids": torch.arange(p + t),
                "rm_scores": reward,
                "rollout_log_probs": torch.cat(log_probs),
                "multi_modal_inputs": {},
            }
        )
        tags.append({"status": "success", "prompt_len": p, "response_len": t, "seq_len": p + t})
    tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(fields), tags=tags)
    return KVBatchMeta(partition_id="train", keys=keys, tags=tags)


def reference(model: str, data: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The statistics of each response in float64 from the plain definitions, with log p still attached to the model."""
    policy = LlamaForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float64)
    columns: dict[str, list[torch.Tensor]] = {"log_probs": [], "entropy": [], "baseline": [], "centered": []}
    for prompt, response in zip(data["prompts"], data["responses"], strict=True):
        logits = policy(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        log_p = (logits / TEMPERATURE).log_softmax(-1)
        p, fixed = log_p.detach().exp(), log_p.detach()
        entropy = -(p * fixed).sum(-1)
        scores = p * (entropy[:, None] + fixed)
        baseline = (p * scores).sum(-1)
        columns["log_probs"].append(log_p.gather(1, response[:, None])[:, 0])
        columns["entropy"].append(entropy)
        columns["baseline"].append(baseline)
        columns["centered"].append(scores.gather(1, response[:, None])[:, 0] - baseline)
    return {name: torch.cat(values) for name, values in columns.items()} | {"policy": policy}  # type: ignore[dict-item]


def gradient_norm(found: dict, advantages: torch.Tensor) -> float:
    """Of −(1/n) Σ Â log p, the loss at ratio 1 when every token counts."""
    (-(advantages.double() * found["log_probs"]).sum() / advantages.numel()).backward()
    return float(torch.stack([p.grad.norm() for p in found["policy"].parameters() if p.grad is not None]).norm())


def check_step(trainer: object, batch: KVBatchMeta, model: str, metrics: dict) -> None:
    names = ["prompts", "responses", "rm_scores", "uid", "entropy", "old_log_probs", "advantages", "returns"]
    names += ["baseline", "discriminant", "centered_discriminant"]
    data = tq.kv_batch_get(batch.keys, "train", select_fields=names)
    rows = {name: list(data[name].unbind()) for name in names if name != "uid"}
    flat = {name: torch.cat(values) for name, values in rows.items()}
    found = reference(model, rows)

    # float32 forwards of two ranks against a float64 forward of one
    close = {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in (("old_log_probs", "log_probs"), ("entropy", "entropy"), ("baseline", "baseline")):
        torch.testing.assert_close(flat[ours].double(), found[theirs].detach(), **close)
    torch.testing.assert_close(flat["centered_discriminant"].double(), found["centered"], **close)

    # GRPO's advantage and Clip_V's rule, written down from their papers
    reward = torch.stack([row.sum() for row in rows["rm_scores"]]).double()
    uid = list(data["uid"])
    groups = [torch.stack([reward[j] for j in range(len(uid)) if uid[j] == one]) for one in uid]
    plain = [(reward[i] - g.mean()) / (g.std() + 1e-6) for i, g in enumerate(groups)]
    A = torch.cat([a.expand(len(r)) for a, r in zip(plain, rows["responses"], strict=True)])
    S_c = found["centered"]
    keep = ~((A <= 0) & (-S_c > MU * S_c.std(correction=0)))  # the official code counts outliers with A = 0 as dropped
    assert 0 < int((~keep & (A < 0)).sum()) < int((A < 0).sum())
    assert int((~keep).sum()) == int(metrics["entropy_control/clip-v/dropped"])
    effective = torch.where(keep, A, 0.0) * keep.numel() / keep.sum()
    torch.testing.assert_close(flat["advantages"].double(), effective, **close)
    torch.testing.assert_close(flat["returns"].double(), A, **close)  # verl's own, before the rule

    # The update of two ranks and four micro-batches each has the gradient of the whole batch.
    norm = gradient_norm(found, effective)
    assert abs(float(metrics["actor/grad_norm"]) - norm) < 1e-3 * norm, (metrics["actor/grad_norm"], norm)
    assert "entropy_control/observed/clip-b(mu=1)/dropped_share" in metrics
    assert metrics["actor/entropy_control/dropped"] == 0  # at ratio 1 clip-higher has nothing to clip


def check_packed(trainer: object, batch: KVBatchMeta) -> None:
    """The packed path scores what the padded one does; one sequence at a time, as more need a GPU's attention."""
    found = []
    for packed in (True, False):
        batch.extra_info["use_remove_padding"] = packed
        trainer._compute_old_log_prob(batch, metrics={})
        data = tq.kv_batch_get(batch.keys, "train", select_fields=["entropy", "baseline", "centered_discriminant"])
        found.append(torch.stack([data[name].values() for name in data.keys()]))  # noqa: SIM118  a TensorDict
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)  # float32, another order of operations
    del batch.extra_info["use_remove_padding"]


def resumed(trainer: object, config: DictConfig) -> object:
    again = get_trainer_cls("entropy_theory_sync")(config=config)
    again.actor_rollout_wg, again.train_dataloader = trainer.actor_rollout_wg, trainer.train_dataloader
    again._load_checkpoint()
    return again


def main(folder: Path) -> None:
    model = tiny_model(folder / "model")
    config = configuration(folder / "run", model, RULE)
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=2**27)
    tq.init(config.transfer_queue)
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)
    assert (trainer.trainer_mode, type(trainer.replay_buffer)) == ("sync", ReplayBuffer)
    trainer._init_tokenizer()
    trainer.train_dataloader = StatefulDataLoader([0, 1])
    trainer.global_steps = 1
    pool = RayResourcePool([2], use_gpu=False, max_colocate_count=1)
    worker = RayClassWithInitArgs(ray.remote(CPUWorker), config=config.actor_rollout_ref, role="actor")
    trainer.actor_rollout_wg = RayWorkerGroup(resource_pool=pool, ray_cls_with_init=worker, device_name="cpu")
    trainer.actor_rollout_wg.init_model()
    batch = completions(16, model)
    batch.extra_info["temperature"] = config.actor_rollout_ref.rollout.temperature
    metrics: dict = {}
    batch = trainer._balance_batch(batch, metrics=metrics)
    check_packed(trainer, batch)
    batch = trainer._compute_old_log_prob(batch, metrics=metrics)
    batch = trainer._compute_advantage(batch, metrics=metrics)
    batch = trainer._update_actor(batch, metrics=metrics)
    print(json.dumps({name: float(value) for name, value in metrics.items()}, indent=1))
    check_step(trainer, batch, model, metrics)

    trainer._save_checkpoint()
    again = resumed(trainer, configuration(folder / "run", model, RULE))
    assert again.rule_state == trainer.rule_state is not None
    assert again.global_steps == 1
    other = configuration(folder / "run", model, RULE.replace(f"mu={MU}", "mu=0.25"))
    with pytest.raises(ValueError, match="the checkpoint's"):
        resumed(trainer, other)
    print("verl step: all checks passed")
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
