"""How the tokens are scored: in which forward, from logits or hidden states, with the same statistics."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory.bridge import trl as bridge
from entropy_theory.bridge.trl import scoring
from entropy_theory.vocab import TokenStatistics, token_statistics
from entropy_theory.vocab.statistics import FIELDS, SECOND_ORDER_FIELDS


class Counting(bridge.EntropyControlledGRPOTrainer):
    """Keeps the batch that the rule was given, the statistics that came with it, and those that were used."""

    def _start_control(self) -> None:
        super()._start_control()
        decide, score = self._generation.decide, self._scorer.score

        def watched(output: dict[str, Any], statistics: TokenStatistics | None) -> dict[str, Any]:
            self.given = self.used = statistics
            changes = decide(output, statistics)
            self.batch = {k: v for k, v in (output | changes).items() if isinstance(v, torch.Tensor)}
            return changes

        def scored(*arguments: Any) -> TokenStatistics:
            self.used = score(*arguments)
            return self.used

        self._generation.decide, self._scorer.score = watched, scored


def from_logits(trainer: Counting) -> TokenStatistics:
    """The reference: all logits at once, in one forward."""
    ids = torch.cat([trainer.batch["prompt_ids"], trainer.batch["completion_ids"]], dim=1)
    mask = torch.cat([trainer.batch["prompt_mask"], trainer.batch["completion_mask"]], dim=1)
    tokens = trainer.batch["completion_ids"]
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -tokens.shape[1] - 1 : -1]
    return token_statistics(logits, tokens, temperature=trainer.temperature, second_order=True)


def assert_same(found: TokenStatistics, expected: TokenStatistics, mask: torch.Tensor) -> None:
    for name in (*FIELDS, *SECOND_ORDER_FIELDS):
        a, b = getattr(found, name), getattr(expected, name)
        if a is not None:
            # Logits of order 1 to 10 in float32, from products of another shape.
            torch.testing.assert_close(a[mask], b[mask], rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


# Where TRL scores the batch itself; where its training forward serves; where control needs a forward of its own.
ROUTES = {"old": {"num_iterations": 2}, "one-pass": {}, "extra": {"gradient_accumulation_steps": 2}}
APART = {"num_iterations": 2, "scoring": "batch"}  # asked for, where TRL's forward would do


@pytest.mark.parametrize("large", [False, True], ids=["small vocabulary", "large vocabulary"])
@pytest.mark.parametrize("route", ROUTES)
def test_statistics_by_every_route(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str, large: bool
) -> None:
    if large:
        monkeypatch.setattr(scoring, "LARGE_VOCABULARY", 8)
    options = arguments(tmp_path, temperature=1.2, learning_rate=0.0, save_batches=1, **ROUTES[route])
    trainer = build(Counting, tiny_decoder, bridge.EntropyControlledGRPOConfig(**options))
    trainer.train()
    # Where TRL computes old log-probabilities or trains on the whole batch, the statistics come with them ...
    assert (trainer.given is None) == (route == "extra")
    if route == "old":
        assert torch.equal(trainer.batch["old_per_token_logps"], trainer.used.log_probs) == large
    # ... and they are what one plain forward gives.
    assert_same(trainer.used, from_logits(trainer), trainer.batch["completion_mask"].bool())


def forwards(trainer: GRPOTrainer) -> int:
    """Train, and count the forwards of whole batches besides those that generate."""
    seen: list[int] = []

    def count(module: Any, arguments: Any, keywords: Any, output: Any) -> None:
        if not keywords.get("use_cache"):  # generation keeps a cache
            seen.append(keywords["input_ids"].shape[0])

    trainer.model.model.register_forward_hook(count, with_kwargs=True)
    trainer.train()
    return sum(rows > 1 for rows in seen)


class Mixed(bridge.EntropyControlMixin, GRPOTrainer):
    """The mixin over TRL's trainer, outside of this package."""


class Logging(GRPOTrainer):
    """A trainer of somebody's own that leaves generation and loss alone."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | {"own": 1.0}, start_time)


@pytest.mark.parametrize(
    ("kind", "route", "more"),
    [(Counting, "old", 0), (Counting, "one-pass", 0), (Counting, "extra", 1), (Counting, "apart", 1),
     (Mixed, "one-pass", 0), (Logging, "one-pass", 0)],
)  # fmt: skip
def test_forwards_of_the_policy(tiny_decoder: Path, tmp_path: Path, kind: type, route: str, more: int) -> None:
    options = bridge.EntropyControlledGRPOConfig(**arguments(tmp_path, **(ROUTES | {"apart": APART})[route]))
    plain = build(GRPOTrainer, tiny_decoder, options, reward_funcs=closeness)
    trainer = build(kind, tiny_decoder, options, reward_funcs=closeness)
    trainer = bridge.attach(trainer) if kind is Logging else trainer
    assert forwards(trainer) - forwards(plain) == more


def test_large_vocabulary_updates_agree_with_plain_trl(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LARGE_VOCABULARY", 8)
    options = arguments(tmp_path, num_iterations=2, max_steps=2, optim="sgd", max_grad_norm=0.0, learning_rate=0.1)
    plain = build(GRPOTrainer, tiny_decoder, GRPOConfig(**options), reward_funcs=closeness)
    start = torch.cat([p.detach().flatten().clone() for p in plain.model.parameters()])
    expected = parameters_after(plain) - start
    ours = build(Counting, tiny_decoder, GRPOConfig(**options), reward_funcs=closeness)
    found = parameters_after(ours) - start
    # The old log-probabilities are ours there: equal to TRL's to float32 rounding, no more.
    assert torch.linalg.norm(found - expected) < 1e-5 * torch.linalg.norm(expected)


def gemma2(**changes: Any) -> Gemma2ForCausalLM:
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return Gemma2ForCausalLM(Gemma2Config(**(sizes | heads | ends | changes)))


def granite() -> GraniteForCausalLM:
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "logits_scaling": 4.0}
    return GraniteForCausalLM(GraniteConfig(**sizes, **heads, bos_token_id=1, eos_token_id=2, pad_token_id=0))


def gpt2_with_bias() -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=30, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.lm_head = torch.nn.Linear(16, 30)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: gemma2(final_logit_softcapping=2.0), ""),  # a cap low enough to bend the logits
        (gpt2_with_bias, ""),
        (granite, "the logits of GraniteForCausalLM are not a product with its output matrix"),
    ],
    ids=["soft cap", "bias", "scaled logits"],
)
def test_output_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, reason: str) -> None:
    monkeypatch.setattr(scoring, "LARGE_VOCABULARY", 8)
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():  # far from uniform, so that cap, bias and scale matter
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    args = bridge.EntropyControlledGRPOConfig(**arguments(tmp_path, learning_rate=0.0, model_init_kwargs=None))
    trainer = build(Counting, model, args)
    if reason:
        with pytest.warns(UserWarning, match="entropy control scores from logits, a few rows at a time: " + reason):
            trainer.train()
    else:
        trainer.train()
    assert trainer._scorer.obstacle(trainer.batch) == reason
    assert_same(trainer.used, from_logits(trainer), trainer.batch["completion_mask"].bool())


def test_dropout_is_scored_apart(tmp_path: Path) -> None:
    """TRL scores old log-probabilities with dropout on: not the policy that sampled."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    )
    options = arguments(tmp_path, num_iterations=2, learning_rate=0.0, model_init_kwargs=None)
    trainer = build(Counting, model, GRPOConfig(**options))
    trainer.train()
    assert trainer.given is None
    assert_same(trainer.used, from_logits(trainer), trainer.batch["completion_mask"].bool())
    with pytest.raises(
        ValueError, match=r"a model without dropout \(disable_dropout\) and .*, received 'one-pass' with"
    ):
        build(Counting, model, bridge.EntropyControlledGRPOConfig(**arguments(tmp_path, scoring="one-pass")))
    by_itself = build(Counting, model, GRPOConfig(**arguments(tmp_path, learning_rate=0.0, model_init_kwargs=None)))
    by_itself.train()
    assert by_itself.given is None


def llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    kind = MixtralForCausalLM if "num_local_experts" in changes else LlamaForCausalLM
    return kind((MixtralConfig if kind is MixtralForCausalLM else LlamaConfig)(**sizes, **heads, **ends, **changes))


def noisy() -> LlamaForCausalLM:
    """Noise in training that no option and no module names."""
    model = llama()
    model.model.embed_tokens.register_forward_hook(
        lambda module, _, output: output + 0.3 * torch.randn_like(output) if module.training else output
    )
    return model


def skipping(draw: Callable[[], float]) -> LlamaForCausalLM:
    """A layer that training skips so rarely that no single forward shows it."""
    model = llama()
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, _, output: output * (draw() > 1e-6) if module.training else output
    )
    return model


@pytest.mark.parametrize("route", ["old", "one-pass"])
@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (llama, {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
        (lambda: llama(num_local_experts=2, router_jitter_noise=0.3), {}, "router_jitter_noise"),
        (noisy, {}, "the training forward is not that of evaluation"),
        (lambda: skipping(lambda: float(torch.rand(()))), {}, "the training forward is not that of evaluation"),
        (lambda: skipping(random.random), {}, "the training forward is not that of evaluation"),
        (lambda: skipping(np.random.random), {}, "the training forward is not that of evaluation"),
    ],
    ids=["NEFTune", "router jitter", "unnamed", "rare, of torch", "rare, of Python", "rare, of NumPy"],
)
def test_noise_in_the_forward_is_scored_apart(
    tmp_path: Path, make: Any, options: dict[str, Any], named: str, route: str
) -> None:
    torch.manual_seed(0)
    shared = arguments(tmp_path, learning_rate=0.0, model_init_kwargs=None, **options)
    trainer = build(Counting, make(), GRPOConfig(**(shared | ROUTES[route])))
    trainer.train()
    assert trainer.given is None
    assert_same(trainer.used, from_logits(trainer), trainer.batch["completion_mask"].bool())
    config = bridge.EntropyControlledGRPOConfig(**shared, scoring="one-pass")
    with pytest.raises(ValueError, match=f"scoring: expected 'batch', or a model .*, received 'one-pass' with {named}"):
        build(Counting, make(), config).train()


def test_looking_for_noise_draws_nothing(tiny_decoder: Path, tmp_path: Path) -> None:
    trainer = build(Counting, tiny_decoder, GRPOConfig(**arguments(tmp_path)))
    trainer.train()
    trainer.model.train()
    before = torch.get_rng_state()
    trainer._scorer._noise = None
    assert trainer._scorer.noise(trainer.batch) == ""
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_that_a_callback_switches_on_is_scored_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama()
    model.model.layers[0].post_attention_layernorm = nn.Sequential(nn.Identity(), nn.Dropout(0.0))

    class Schedule(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            model.model.layers[0].post_attention_layernorm[1].p = 0.5

    shared = arguments(tmp_path, learning_rate=0.0, model_init_kwargs=None, max_steps=2)
    trainer = build(Counting, model, GRPOConfig(**shared))
    trainer.add_callback(Schedule())
    trainer.train()
    assert trainer.given is None
    assert_same(trainer.used, from_logits(trainer), trainer.batch["completion_mask"].bool())


@pytest.mark.parametrize("scale", [1.0, 150.0])
def test_a_soft_cap_in_16_bit_is_trls(tmp_path: Path, scale: float) -> None:
    """Old log-probabilities from hidden states are those of TRL's training forward: the first ratio is 1."""
    torch.manual_seed(0)
    model = gemma2(vocab_size=scoring.LARGE_VOCABULARY, final_logit_softcapping=30.0).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    options = arguments(tmp_path, num_iterations=2, learning_rate=0.0, model_init_kwargs=None, max_steps=1)
    trainer = build(Counting, model, GRPOConfig(**options))
    trainer.train()
    assert trainer.given is not None
    batch = trainer.batch
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    length = batch["completion_ids"].shape[1]
    with torch.no_grad():
        trls = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer, trainer.model, ids, mask, length, compute_entropy=True
        )
    valid = batch["completion_mask"].bool()
    # Products of the same bf16 numbers, rounded once; sums of 4,096 terms in float32. bf16 has 4e-3.
    torch.testing.assert_close(batch["old_per_token_logps"][valid], trls[0][valid], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trainer.used.entropy[valid], trls[1][valid], rtol=1e-5, atol=1e-5)


def padded(extra: int) -> LlamaForCausalLM:
    """A model with entries of the vocabulary that no logit reaches: −inf."""
    torch.manual_seed(0)
    model = llama()
    size = model.config.vocab_size + extra
    head = torch.nn.Linear(16, size)
    with torch.no_grad():
        head.weight.zero_(), head.bias.fill_(-torch.inf)
        head.weight[:30], head.bias[:30] = model.lm_head.weight, 0.0
    head.bias.requires_grad_(False)
    model.lm_head, model.config.vocab_size = head, size
    return model


@pytest.mark.parametrize(
    "rule",
    ["ppo-clip", "entropy-bonus(coefficient=0.5)", "steer", "clip-higher|entropy-ratio", "clip-b(mu=0.5)|kl-cov",
     "ppo-clip|clip-v(mu=0.5, max_fraction=None)"],
)  # fmt: skip
def test_a_vocabulary_with_infinite_logits(tmp_path: Path, rule: str) -> None:
    """The updates are those of the model without the entries, where TRL's own entropies are numbers."""
    recorded: list[list[list[int]]] = []
    updates = []
    for extra in (0, 5):
        options = arguments(tmp_path, num_iterations=2, max_steps=2, model_init_kwargs=None, optim="sgd")
        options |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "learning_rate": 0.1}
        trainer = build(Counting, padded(extra), GRPOConfig(**options), rule=rule, reward_funcs=closeness)
        generate = trainer._generate_single_turn

        def same(*given: Any, generate: Any = generate, extra: int = extra) -> Any:
            if not extra:
                recorded.append(generate(*given)[0])
            return recorded[-1], None

        trainer._generate_single_turn = same
        start = torch.cat([p.detach().flatten().clone() for p in trainer.model.model.parameters()])
        trainer.train()
        updates.append(torch.cat([p.detach().flatten() for p in trainer.model.model.parameters()]) - start)
    without, with_entries = updates
    assert torch.linalg.norm(without) > 0
    # Entropies from another kernel, sums over another number of terms, float32.
    assert torch.linalg.norm(with_entries - without) < 1e-4 * torch.linalg.norm(without)


@pytest.mark.parametrize("rule", ["none", "ppo-clip"])
def test_trls_entropy_mask_over_infinite_logits_is_refused(tmp_path: Path, rule: str) -> None:
    """TRL's own entropies are NaN there, and its mask would leave no token to train on."""
    options = arguments(tmp_path, model_init_kwargs=None, top_entropy_quantile=0.4)
    trainer = build(Counting, padded(3), GRPOConfig(**options), rule=rule)
    with pytest.raises(ValueError, match=r"top_entropy_quantile: expected 1\.0 for a model with .*, received 0\.4"):
        trainer.train()
    parameters_after(build(Counting, padded(0), GRPOConfig(**options), rule=rule))


def test_one_pass_with_an_unreadable_output_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = granite()
    options = arguments(tmp_path, learning_rate=0.0, model_init_kwargs=None)
    with pytest.raises(ValueError, match=r"scoring: expected 'batch': the logits of Granite.* received 'one-pass'"):
        build(Counting, model, bridge.EntropyControlledGRPOConfig(**options, scoring="one-pass")).train()
    trainer = build(Counting, model, GRPOConfig(**options))
    trainer.train()
    assert trainer.given is None
    assert_same(trainer.used, from_logits(trainer), trainer.batch["completion_mask"].bool())


@pytest.mark.parametrize(
    "rule",
    [
        "none",
        "clip-b(mu=0.5)",
        "clip-v(mu=0.5, max_fraction=None)|entropy-bonus",
        "random-mask(fraction=0.3)",  # draws by row: TRL's shuffle must not matter
    ],
)
def test_one_pass_equals_the_batch(tiny_decoder: Path, tmp_path: Path, rule: str) -> None:
    results = {}
    for way in ("batch", "one-pass"):
        options = arguments(tmp_path, max_steps=3, optim="sgd", max_grad_norm=0.0, learning_rate=0.1, scoring=way)
        config = bridge.EntropyControlledGRPOConfig(**options, realised_change_every=1)
        trainer = build(Counting, tiny_decoder, config, rule=rule, reward_funcs=closeness)
        start = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        results[way] = (parameters_after(trainer) - start, trainer.state.log_history[:-1])
    (one, one_log), (whole, log) = results["one-pass"], results["batch"]
    # The same tokens and the same mask; the statistics come from two forwards of different shape.
    assert torch.linalg.norm(one - whole) < 1e-5 * torch.linalg.norm(whole)
    for name in ("dropped_share", "slope", "realised_change", "quadrant_share_q2"):
        key = bridge.PREFIX + name
        assert [line[key] for line in one_log] == pytest.approx([line[key] for line in log], abs=1e-5)
    assert rule == "none" or log[0][bridge.PREFIX + "dropped_share"] > 0
