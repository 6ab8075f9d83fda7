"""How the tokens are scored: in which forward, from logits or hidden states, with the same statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, GraniteConfig, GraniteForCausalLM
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
    [(Counting, "old", 0), (Counting, "one-pass", 0), (Counting, "extra", 1), (Mixed, "one-pass", 0),
     (Logging, "one-pass", 0)],
)  # fmt: skip
def test_forwards_of_the_policy(tiny_decoder: Path, tmp_path: Path, kind: type, route: str, more: int) -> None:
    options = GRPOConfig(**arguments(tmp_path, **ROUTES[route]))
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
    return Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, **ends, **changes))


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
