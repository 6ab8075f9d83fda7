"""The lens against per-token sums written out, drawn random masks, and a batch of a real GRPO run."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from control_batches import EVERY_METHOD, random_batch
from influence_models import TinyModel, log_policies, one_backward_per_token, step_batch
from rich.console import Console

import entropy_theory as et
from entropy_theory.control import TokenBatch, lens, rule
from entropy_theory.report import tables
from entropy_theory.report.figures.lens import lens_figure

REAL = Path(__file__).parent / "grpo_batch.safetensors"
ASKED = ["clip-b(mu=0.3)", "clip-v(drop_fraction=0.2)", "entropy-bonus(coefficient=0.3)", "steer", "entropy-budget"]


@pytest.mark.parametrize("spec", EVERY_METHOD)
def test_totals_and_quadrants(spec: str) -> None:
    batch = random_batch(0, rows=10)
    row = lens(batch, [spec], step_size=0.5, resamples=2).rows[1]
    out = rule(spec).apply(batch, generator=torch.Generator().manual_seed(0))
    valid = batch.completion_mask.numpy()
    effect = -out.coefficients.numpy() * batch.centered_discriminant.numpy()
    if out.entropy_coefficients is not None:
        effect = effect + (out.entropy_coefficients * batch.sum_squared_discriminant).numpy()
    effect = 0.5 * effect[valid] / int(out.denominator)
    assert row.total.value == pytest.approx(effect.sum(), rel=1e-12, abs=1e-15)
    assert row.per_token == pytest.approx(effect.mean(), rel=1e-12, abs=1e-15)
    numbers = batch.quadrants().numpy()[valid]
    for q in (1, 2, 3, 4):
        assert row.quadrants[f"q{q}"] == pytest.approx(effect[numbers == q].sum(), rel=1e-12, abs=1e-15)
    assert sum(row.quadrants.values()) == pytest.approx(row.total.value, rel=1e-9, abs=1e-15)
    assert row.dropped_share == pytest.approx(out.metrics["dropped_share"])


def test_prediction_is_the_slope_of_the_exact_entropy() -> None:
    """The oracle: one position per token, moved along its own gradient, entropies computed from logits."""
    generator = torch.Generator().manual_seed(3)
    logits = 2.0 * torch.randn(6, 4, 9, generator=generator, dtype=torch.float64)
    tokens = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(6, 4, 1)
    z, k = logits.numpy(), tokens[..., 0].numpy()
    log_p = logits.log_softmax(-1)
    batch = TokenBatch(
        log_probs=log_p.gather(-1, tokens)[..., 0],
        entropy=torch.from_numpy(et.entropy(z)),
        advantages=torch.randn(6, generator=generator, dtype=torch.float64),
        completion_mask=torch.ones(6, 4),
        centered_discriminant=torch.from_numpy(et.centered_discriminant(z, token=k)),
    )
    row = lens(batch, ["clip-v(drop_fraction=0.3)"], resamples=2).rows[1]
    out = rule("clip-v(drop_fraction=0.3)").apply(batch)
    step = 1e-6
    move = (out.coefficients / out.denominator).numpy()[..., None] * et.grpo_direction(z, token=k)
    realised = et.entropy_change(z, step * move).sum() / step
    assert row.total.value == pytest.approx(realised, rel=1e-5)


@pytest.mark.parametrize("spec", ["clip-v(drop_fraction=0.3, denominator='kept')", "w-reinforce"])
def test_influence_is_the_slope_of_mean_entropy_along_the_rules_step(spec: str) -> None:
    """The oracle: the weights moved along the rule's gradient by reverse mode, and mean entropy before and after."""
    model, step = TinyModel(), step_batch()
    logs, valid = log_policies(model, step), step.valid
    mine = logs.gather(-1, step.completion_ids[valid][:, None])[:, 0]
    columns = {
        "log_probs": mine.detach(),
        "entropy": -(logs.exp() * logs).sum(-1).detach(),
        "influence": one_backward_per_token(model, step, valid).detach(),
        "centered_discriminant": torch.linspace(-1, 1, len(logs), dtype=torch.float64),  # in no way that of the model
        "old_log_probs": mine.detach(),
    }
    spread = {
        name: torch.zeros(valid.shape, dtype=torch.float64).masked_scatter(valid, c) for name, c in columns.items()
    }
    rewards = (torch.arange(len(valid)) % 2).double()
    batch = TokenBatch(
        advantages=step.advantages[:, 0], completion_mask=valid, rewards=rewards, group_ids=step.group_ids, **spread
    )
    row = lens(batch, [spec], step_size=0.5, resamples=20, influence=True).rows[1]
    out = rule(spec).apply(batch)
    assert not torch.equal(out.coefficients, rule("none").apply(batch).coefficients)
    objective = (out.coefficients[valid] * mine).sum() / out.denominator
    ascent = torch.autograd.grad(objective, list(model.parameters()))
    means = []
    for move in (1e-5, -1e-5):
        moved = TinyModel()
        with torch.no_grad():
            for p, slope in zip(moved.parameters(), ascent, strict=True):
                p += move * slope
            after = log_policies(moved, step)
        means.append(-(after.exp() * after).sum(-1).mean())
    # a central difference: the third derivative times 1e-10, and 1e-16/1e-5 of round-off
    assert row.influence.value == pytest.approx(0.5 * float(means[0] - means[1]) / 2e-5, rel=1e-6)
    none = lens(batch, [], step_size=0.5, resamples=20, influence=True).rows[0].influence
    assert row.influence_against_none.value == pytest.approx(row.influence.value - none.value, rel=1e-12)
    assert row.influence.low <= row.influence.high
    assert lens(batch, [spec], resamples=2).rows[1].influence is None  # not asked for


def test_free_logits_give_both_predictions_the_same_value() -> None:
    batch = random_batch(2)
    count = int(batch.completion_mask.sum())
    spoiled = (-batch.centered_discriminant / count).masked_fill(~batch.completion_mask, float("nan"))
    batch = replace(batch, influence=spoiled)
    for row in lens(batch, ["clip-v(drop_fraction=0.2)", "high-entropy(share=0.5)"], resamples=50, influence=True).rows:
        assert row.influence.value == pytest.approx(row.per_token, rel=1e-12)
        assert row.influence.low == pytest.approx(row.total.low / count, rel=1e-9)
        assert row.influence_against_none.value == pytest.approx(row.against_none.value / count, rel=1e-9, abs=1e-18)


def test_an_entropy_term_has_no_recorded_influence_and_a_batch_may_have_none() -> None:
    batch = random_batch(0)
    with pytest.raises(ValueError, match=r"influence: expected a tensor, which lens needs \(.*inspect .* --influence"):
        lens(batch, [], resamples=2, influence=True)
    batch = replace(batch, influence=batch.centered_discriminant)
    rows = lens(batch, ["entropy-bonus(coefficient=0.1)", "steer"], resamples=2, influence=True).rows
    assert [row.influence is None for row in rows] == [False, True, False]
    assert rows[1].influence_against_none is None


@pytest.mark.usefixtures("shapes_unchecked")
def test_matched_random_mask_in_closed_form() -> None:
    """4000 draws: the mean to 4.5 of its standard errors, the deviation to 5 % (its own error is about 1.1 %)."""
    batch = random_batch(1, rows=12)
    spec = "clip-v(drop_fraction=0.3, denominator='kept')"
    row = lens(batch, [spec], resamples=2).rows[1]
    control, generator = rule("random-mask", match=spec), torch.Generator().manual_seed(0)
    totals = []
    for _ in range(4000):
        out = control.apply(batch, generator=generator)
        total = -(out.coefficients * batch.centered_discriminant)[batch.completion_mask].sum()
        totals.append(float(total / out.denominator))
    assert np.mean(totals) == pytest.approx(row.random_total, abs=4.5 * row.random_deviation / 4000**0.5)
    assert np.std(totals) == pytest.approx(row.random_deviation, rel=0.05)
    assert row.against_random == pytest.approx((row.total.value - row.random_total) / row.random_deviation)


def test_intervals_cover_the_mean_of_the_population() -> None:
    """60 batches of 40 independent rows: about 95 % of the intervals hold the value of a batch of 24,000 rows."""
    whole = random_batch(5, rows=2400, width=5)
    truth = lens(replace(whole, group_ids=None), [], resamples=2).rows[0].total.value
    hits = 0
    for part in range(60):
        rows = slice(40 * part, 40 * part + 40)
        fields = {name: value[rows] for name, value in vars(whole).items() if value is not None}
        total = lens(TokenBatch(**{**fields, "group_ids": None}), [], resamples=400).rows[0].total
        hits += total.low <= truth <= total.high
    assert hits >= 50


def test_rules_that_change_nothing_differ_by_nothing() -> None:
    table = lens(replace(random_batch(0), old_log_probs=None), ["clip-b(mu=100)", "none"], resamples=5)
    assert [row.rule for row in table.rows] == ["none", "clip-b(mu=100)"]
    same = table.rows[1]
    assert (same.against_none.value, same.against_none.low, same.against_none.high) == (0.0, 0.0, 0.0)
    assert (same.gradient_kept, same.distance, same.random_total) == (1.0, 0.0, None)


def test_second_order_needs_the_curvature() -> None:
    batch = random_batch(0)
    assert lens(batch, [], resamples=2).rows[0].second_order is None
    curved = replace(batch, grpo_curvature=torch.full_like(batch.log_probs, -0.5))
    row = lens(curved, [], step_size=2.0, resamples=2).rows[0]
    g = rule("none").apply(batch).coefficients
    n = int(batch.completion_mask.sum())
    assert row.second_order == pytest.approx(row.total.value - 0.25 * float((2.0 * g / n).square().sum()))


def test_everything_there_is_on_a_real_batch() -> None:
    batch = TokenBatch.load(REAL)
    table = lens(batch, resamples=50)
    assert not table.skipped
    assert len(table.rows) >= 25
    assert table.cluster_kind == "groups"
    data = table.to_dict()
    layout = tables.lens_table(data)
    assert layout.row_count == len(table.rows)
    figure = lens_figure(data)
    assert len(figure.axes) == 2


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_tables_keep_names_and_numbers_in_a_narrow_terminal(width: int) -> None:
    batch = random_batch(0)
    batch = replace(batch, influence=torch.full_like(batch.log_probs, 0.01))
    data = lens(batch, ["advantage-reweighting"], resamples=2, influence=True).to_dict()
    for layout in (tables.lens_table(data), tables.influence_table(data)):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(tables.fitted(layout, width))
        text = console.export_text()
        assert "…" not in text
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert any(line.strip().startswith("ad") for line in lines)  # the name, folded


def test_rules_without_their_inputs_are_named() -> None:
    batch = replace(random_batch(0), rewards=None, sum_squared_discriminant=None)
    table = lens(batch, resamples=2)
    assert {"w-reinforce", "entropy-bonus"} <= set(table.skipped)
    assert "rewards: expected a tensor" in table.skipped["w-reinforce"]
    with pytest.raises(ValueError, match="sum_squared_discriminant: expected a tensor, which entropy-bonus needs"):
        lens(batch, ["entropy-bonus"])
    with pytest.raises(ValueError, match=r"centered_discriminant: .* which lens needs"):
        lens(replace(batch, centered_discriminant=None, baseline=None))
    for wrong in ({"step_size": 0.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            lens(batch, [], **wrong)
    empty = replace(batch, completion_mask=torch.zeros_like(batch.completion_mask))
    with pytest.raises(ValueError, match="completion_mask: expected at least one valid token"):
        lens(empty)
