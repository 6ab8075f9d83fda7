"""Influence against one backward per token, finite steps, and a model whose positions share nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from influence_models import VOCAB, Table, TinyModel, log_policies, one_backward_per_token, step_batch
from torch import nn

from entropy_theory.control import TokenBatch
from entropy_theory.control import rule as build_rule
from entropy_theory.influence import StepBatch, entropy_gradient, model_view, tangent_statistics, token_influence
from entropy_theory.vocab import token_statistics


def valid_values(influence: Any, batch: StepBatch) -> torch.Tensor:
    assert not influence.values[~batch.valid].any()
    return influence.values[batch.valid]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("budget", [1, 1 << 27])  # a row at a time, and all rows
def test_equals_one_backward_per_token(temperature: float, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_view, "LOGITS_BUDGET", budget)
    model, batch = TinyModel(), step_batch(temperature=temperature)
    influence = token_influence(model, batch, check="all")
    expected = one_backward_per_token(model, batch, batch.valid)
    # forward against reverse mode in float64
    torch.testing.assert_close(valid_values(influence, batch), expected, rtol=1e-9, atol=1e-13)
    assert influence.method == "jvp"
    assert influence.check < 1e-12
    total = (expected * batch.advantages[batch.valid]).sum() / len(expected)
    assert influence.total == pytest.approx(float(total), rel=1e-9)
    logs = log_policies(model, batch).detach()
    torch.testing.assert_close(influence.entropy[batch.valid], -(logs.exp() * logs).sum(-1), rtol=1e-12, atol=1e-13)


def test_crossed_halves_are_measured_on_each_other() -> None:
    model, batch = TinyModel(1), step_batch()
    influence = token_influence(model, batch, over="crossed")
    even = (batch.group_ids % 2 == 0)[:, None] & batch.valid
    expected = torch.where(
        even[batch.valid],
        one_backward_per_token(model, batch, batch.valid & ~even),
        one_backward_per_token(model, batch, even),
    )
    torch.testing.assert_close(valid_values(influence, batch), expected, rtol=1e-9, atol=1e-13)
    assert influence.check < 1e-12


def test_a_tied_output_matrix_and_frozen_weights() -> None:
    model, batch = TinyModel(2, tied=True), step_batch()
    model.inner.requires_grad_(False)
    influence = token_influence(model, batch)
    expected = one_backward_per_token(model, batch, batch.valid)
    torch.testing.assert_close(valid_values(influence, batch), expected, rtol=1e-9, atol=1e-13)


def test_a_preconditioner_by_weight_and_as_a_function() -> None:
    model, batch = TinyModel(3), step_batch()
    generator = torch.Generator().manual_seed(0)
    factors = {name: torch.rand(p.shape, generator=generator).double() + 0.1 for name, p in model.named_parameters()}
    expected = one_backward_per_token(model, batch, batch.valid, factors)

    def function(direction: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: factors[name] * value for name, value in direction.items()}

    for given in (factors, function):
        influence = token_influence(model, batch, preconditioner=given)
        torch.testing.assert_close(valid_values(influence, batch), expected, rtol=1e-9, atol=1e-13)
        assert influence.check < 1e-12


def test_a_step_changes_mean_entropy_by_the_total() -> None:
    """Realised over predicted, ΔH̄/(η Σ g D/n), tends to 1 linearly in η: what is off is the second order."""
    model, batch = TinyModel(4), step_batch()
    influence = token_influence(model, batch)
    logs = log_policies(model, batch)
    mine = logs.gather(-1, batch.completion_ids[batch.valid][:, None])[:, 0]
    ((mine * batch.advantages[batch.valid]).mean()).backward()
    before = -(logs.exp() * logs).sum(-1).mean().detach()
    errors = []
    for rate in (1e-3, 1e-4):
        moved = TinyModel(4)
        with torch.no_grad():
            for p, q in zip(moved.parameters(), model.parameters(), strict=True):
                p += rate * q.grad
            after = log_policies(moved, batch)
        realised = float(-(after.exp() * after).sum(-1).mean() - before)
        errors.append(realised / (rate * influence.total) - 1)
    assert abs(errors[0]) < 0.05
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


def test_free_logits_give_the_tabular_theory() -> None:
    """Every position has a row of the table to itself."""
    rows, width = 3, 4
    ids = torch.arange(rows * (width + 1)).reshape(rows, width + 1)  # a number for each position
    sampled = ids % VOCAB
    model = Table()
    ones = torch.ones(rows, width, dtype=torch.long)
    batch = StepBatch(ids[:, :1] % VOCAB, ones[:, :1], sampled[:, 1:], ones, torch.ones(rows), torch.arange(rows))

    class Numbered(nn.Module):
        """Reads the position's number instead of its token."""

        def __init__(self) -> None:
            super().__init__()
            self.table = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            number = (input_ids[:, None, :] == sampled[None]).all(-1).int().argmax(1)  # which rows were asked for
            return self.table(ids[number], attention_mask)

    influence = token_influence(Numbered(), batch)
    torch.testing.assert_close(influence.values, influence.tabular, rtol=1e-9, atol=1e-14)
    statistics = tangent_statistics(Numbered(), batch)
    policy = token_statistics(model.rows[ids[:, :-1]].detach(), batch.completion_ids)
    for name in ("discriminant", "baseline", "centered_discriminant", "entropy", "log_probs"):
        torch.testing.assert_close(getattr(statistics, name), getattr(policy, name), rtol=1e-9, atol=1e-12)


def test_the_difference_is_off_by_what_it_states() -> None:
    for dtype, seed in ((torch.float64, 5), (torch.float32, 6)):
        batch = step_batch(seed=seed)
        model = TinyModel(seed).to(dtype)
        exact = token_influence(TinyModel(seed), batch).values
        approximate = token_influence(model, batch, method="difference")
        error = (approximate.values.double() - exact)[batch.valid].square().mean().sqrt()
        # an estimate of a root mean square from eight rows and one sign pattern: right to a factor
        assert 0 < error < 5 * approximate.error
        assert approximate.error < 1e-3 * exact.abs().mean()


def test_output_equals_jvp_where_only_the_output_matrix_trains() -> None:
    pytest.importorskip("transformers")
    from entropy_theory.testbed import decoder

    model = decoder.build_model(decoder.WarmupConfig(hidden_size=16, layers=1, heads=2), VOCAB).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.dim() == 2 else 1.0)
    model.requires_grad_(False).get_output_embeddings().requires_grad_(True)
    batch = step_batch(temperature=0.8)
    for over in ("same", "crossed"):
        closed = token_influence(model, batch, method="output", over=over)
        exact = token_influence(model, batch, method="jvp", over=over)
        torch.testing.assert_close(closed.values, exact.values, rtol=1e-9, atol=1e-13)
        assert closed.total == pytest.approx(exact.total, rel=1e-9)
        assert closed.check < 1e-9
        assert closed.method == "output"


def test_crossed_means_are_zero_and_same_batch_means_need_not_be() -> None:
    """E[D_t] over all completions of two tokens, weighted by their probability: part E of the theory notes."""
    model = TinyModel(5)
    every = torch.cartesian_prod(torch.arange(VOCAB), torch.arange(VOCAB))
    prompt, one, two = torch.tensor([[3]]), torch.ones(2, 1, dtype=torch.long), torch.ones(2, 2, dtype=torch.long)
    others = torch.tensor([[4, 7]])
    means = {"crossed": torch.zeros(2).double(), "same": torch.zeros(2).double()}
    size = 0.0
    for completion in every[:, None]:
        both = torch.cat([completion, others])
        batch = StepBatch(prompt.expand(2, 1), one, both, two, torch.ones(2), torch.arange(2))
        alone = StepBatch(prompt, one[:1], completion, two[:1], torch.ones(1), torch.zeros(1, dtype=torch.long))
        logs = log_policies(model, alone).detach()
        weight = logs.gather(-1, completion.T).sum().exp()
        crossed = token_influence(model, batch, over="crossed", check="none").values[0]
        means["crossed"] += weight * crossed
        means["same"] += weight * token_influence(model, alone, check="none").values[0]
        size += float(weight * crossed.abs().mean())
    assert means["crossed"].abs().max() < 1e-12 * size
    assert means["same"][0].abs() > 0.01 * size
    assert means["same"][1].abs() < 1e-12 * size  # no context depends on the last token


def test_crossed_means_of_samples_are_zero_within_their_error() -> None:
    model, rows, width = TinyModel(7), 1200, 3
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCAB, (rows, 2), generator=generator)
    with torch.no_grad():
        for _ in range(width):
            p = model(ids, torch.ones_like(ids)).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], 1)
    ones, means = torch.ones(6, width, dtype=torch.long), []
    for own in ids.split(6):
        batch = StepBatch(own[:, :2], ones[:, :2], own[:, 2:], ones, torch.ones(6), torch.arange(6))
        means.append(token_influence(model, batch, over="crossed", check="none").values.mean())
    mean = torch.stack(means)
    assert abs(mean.mean()) < 3 * mean.std() / len(mean) ** 0.5


def test_rules_run_on_tangent_statistics() -> None:
    model, batch = TinyModel(8), step_batch()
    statistics = tangent_statistics(model, batch)
    tokens = TokenBatch.from_statistics(
        statistics, advantages=batch.advantages, completion_mask=batch.valid, old_log_probs=statistics.log_probs
    )
    output = build_rule("clip-v(mu=0.5, max_fraction=None)").apply(tokens)
    influence = token_influence(model, batch)
    n = influence.count
    torch.testing.assert_close(tokens.centered_scores(), -n * influence.values, rtol=1e-9, atol=1e-12)
    assert output.metrics["dropped_share"] > 0


def test_nothing_of_the_model_changes() -> None:
    """Weights, gradients, mode, a patched forward, and the attention that it had."""
    pytest.importorskip("transformers")
    from entropy_theory.testbed import decoder

    model = decoder.build_model(decoder.WarmupConfig(hidden_size=16, layers=1, heads=2), VOCAB).train()
    model.gradient_checkpointing_enable()
    patched = model.forward
    model.forward = lambda *args, **kwargs: pytest.fail("the patched forward ran")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    attention, states = model.config._attn_implementation, torch.get_rng_state()
    token_influence(model, step_batch())
    assert model.forward is not patched
    del model.forward
    assert model.config._attn_implementation == attention
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(states, torch.get_rng_state())


def test_half_precision_weights_are_scored_in_float32() -> None:
    batch, model = step_batch(), TinyModel(9).to(torch.bfloat16)
    wide = TinyModel(9)
    wide.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    for method, tolerance in (("jvp", 1e-4), ("difference", 1e-2)):  # float32, and its difference quotient
        values = token_influence(model, batch, method=method).values
        assert values.dtype is torch.float32
        exact = token_influence(wide, batch).values
        assert (values - exact).abs().max() < tolerance * exact.abs().max()


class Rounded(torch.autograd.Function):
    """An operation with a derivative in reverse mode alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Layer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Rounded.apply(x)


class WithoutForwardMode(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.rounding = Layer()

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.rounding(super().hidden(input_ids, attention_mask))


def test_a_model_without_a_forward_mode_derivative() -> None:
    model, batch = WithoutForwardMode(), step_batch()
    with pytest.raises(ValueError, match=r"method: expected 'difference': layer 'rounding' \(Layer\)"):
        token_influence(model, batch, method="jvp")
    influence = token_influence(model, batch)
    assert influence.method == "difference"
    exact = token_influence(TinyModel(), batch)
    torch.testing.assert_close(influence.values, exact.values, rtol=1e-4, atol=5 * influence.error)


def test_wrong_input_is_named() -> None:
    model, batch = TinyModel(), step_batch()
    nothing = replace(batch, completion_mask=torch.zeros_like(batch.completion_mask))
    frozen = TinyModel().requires_grad_(False)
    broken = TinyModel()
    with torch.no_grad():
        broken.inner[0, 0] = torch.nan
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    other_shape, not_finite = ones | {"inner": ones["output"]}, ones | {"inner": ones["inner"] * torch.nan}
    one_group = replace(batch, group_ids=torch.zeros_like(batch.group_ids))
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("batch: expected at least one valid token", model, nothing, {}),
        ("model: expected parameters that require a gradient", frozen, batch, {}),
        ("model: expected finite", broken, batch, {}),
        (r"preconditioner: expected shape \(6, 6\) for inner", model, batch, {"preconditioner": other_shape}),
        ("preconditioner: expected a factor for each weight", model, batch, {"preconditioner": {}}),
        ("preconditioner: expected finite", model, batch, {"preconditioner": not_finite}),
        ("preconditioner: expected shape", model, batch, {"preconditioner": lambda direction: {}}),
        ("over: expected 'same' or 'crossed'", model, batch, {"over": "other"}),
        ("check: expected 'sample'", model, batch, {"check": True}),
        ("method: expected 'auto'", model, batch, {"method": "exact"}),
        ("over: expected 'same'", model, one_group, {"over": "crossed"}),
        ("method: expected 'jvp'", model, batch, {"method": "output"}),
    ]  # fmt: skip
    for message, of, tokens, settings in cases:
        with pytest.raises(ValueError, match=message):
            token_influence(of, tokens, **settings)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("advantages: expected finite", {"advantages": torch.full_like(batch.advantages, torch.nan)}),
        ("advantages: expected shape", {"advantages": batch.advantages[:, :2]}),
        ("completion_mask: expected values 0 and 1", {"completion_mask": 2 * batch.completion_mask}),
        ("group_ids: expected shape", {"group_ids": batch.group_ids[:1]}),
        ("prompt_mask: expected shape", {"prompt_mask": batch.prompt_mask[:1]}),
        ("temperature: expected a finite number > 0", {"temperature": 0.0}),
    ]
    for message, changes in wrong:
        with pytest.raises(ValueError, match=message):
            replace(batch, **changes)


def test_entropy_gradient_is_the_derivative() -> None:
    model, batch = TinyModel(10), step_batch()
    gradient, entropy = entropy_gradient(model, batch)
    logs = log_policies(model, batch)
    H = -(logs.exp() * logs).sum(-1)
    expected = torch.autograd.grad(H.mean(), list(model.parameters()))
    for value, reference in zip(gradient.values(), expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(entropy[batch.valid], H.detach(), rtol=1e-12, atol=1e-13)


def test_adapters_alone_count_as_trained() -> None:
    peft, _ = pytest.importorskip("peft"), pytest.importorskip("transformers")
    from entropy_theory.testbed import decoder

    base = decoder.build_model(decoder.WarmupConfig(hidden_size=16, layers=1, heads=2), VOCAB).double()
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    ).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    batch = step_batch()
    influence = token_influence(model, batch)
    model.eval()
    with model_view.full_precision(torch.float64):
        expected = one_backward_per_token(model, batch, batch.valid)
    torch.testing.assert_close(valid_values(influence, batch), expected, rtol=1e-9, atol=1e-13)
