"""The tokens' view against SciPy, sets written out by hand, finite steps, and optimizers that really step."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from audit_models import RATE, Bigrams, entropies, sampled, small_decoder, step
from scipy import stats

from entropy_theory.audit import step as audit_step
from entropy_theory.audit.run import first_order_parts
from entropy_theory.audit.step import measure_step
from entropy_theory.audit.tokens import (
    TOKEN_ESTIMATES,
    means_summary,
    measure_tokens,
    token_agreement,
    token_row,
    tokens_summary,
)
from entropy_theory.influence import preconditioner
from entropy_theory.intervals import Resampling


def columns(n: int = 400, seed: int = 0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(n) * generator.choice([0.0, 1.0, 3.0], n)
    return x, 0.7 * x + generator.standard_normal(n), generator.integers(0, 20, n)


def values(estimates) -> list[float]:
    return [estimates[name]["value"] for name in TOKEN_ESTIMATES]


def test_one_step_has_the_numbers_of_other_libraries() -> None:
    x, y, groups = columns()
    estimates = token_agreement(x, y, np.zeros(400, dtype=np.int64), Resampling.draw([groups], 50, 0))
    signed = x != 0
    strongest_x, strongest_y = (set(sorted(range(400), key=lambda i: -abs(v[i]))[:12]) for v in (x, y))
    expected = [
        stats.pearsonr(x, y).statistic,
        stats.spearmanr(x, y).statistic,
        np.mean(np.sign(x[signed]) == np.sign(y[signed])),
        len(strongest_x & strongest_y) / 12,
    ]
    assert values(estimates) == pytest.approx(expected, rel=1e-5)  # recorded with six digits
    for name in TOKEN_ESTIMATES:
        assert estimates[name]["low"] <= estimates[name]["value"] <= estimates[name]["high"]


def test_the_strongest_written_out() -> None:
    x, y = np.zeros(100), np.zeros(100)
    x[[3, 40, 99]], y[[3, 99, 7]] = (5.0, -9.0, 2.0), (1.0, -1.0, 30.0)
    estimates = token_agreement(x, y, np.zeros(100, dtype=np.int64), Resampling.draw([np.arange(100)], 5, 0))
    assert estimates["strongest_shared"]["value"] == pytest.approx(2 / 3, rel=1e-5)
    assert estimates["sign_agreement"]["value"] == 0.5  # tokens 3 and 99 have two signs each; 99 disagrees


def test_steps_of_other_scales_count_by_their_tokens() -> None:
    parts = [columns(n, seed) for seed, n in enumerate((100, 300))]
    scaled = [(x, 10.0 ** (6 * i) * y + i, groups) for i, (x, y, groups) in enumerate(parts)]
    x, y, _ = (np.concatenate(c) for c in zip(*scaled, strict=True))
    number = np.repeat([0, 1], (100, 300))
    estimates = token_agreement(x, y, number, Resampling.draw([groups for *_, groups in scaled], 20, 0))
    for name, statistic in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        of_steps = [statistic(x, y).statistic for x, y, _ in scaled]
        expected = 0.25 * of_steps[0] + 0.75 * of_steps[1]
        assert estimates[name]["value"] == pytest.approx(expected, rel=1e-5), name


def test_a_part_of_the_tokens_and_nothing() -> None:
    x, y, groups = columns()
    resampling, together = Resampling.draw([groups], 20, 0), np.zeros(400, dtype=np.int64)
    where = x > 0
    estimates = token_agreement(x, y, together, resampling, where)
    assert estimates["tokens"] == where.sum()
    assert estimates["pearson"]["value"] == pytest.approx(stats.pearsonr(x[where], y[where]).statistic, rel=1e-5)
    empty = token_agreement(x, y, together, resampling, np.zeros(400, dtype=bool))
    assert empty == {"tokens": 0, **dict.fromkeys(TOKEN_ESTIMATES)}
    constant = token_agreement(np.ones(400), y, together, resampling)
    assert constant["pearson"] is None
    assert constant["spearman"] is None


def nothing(slope: object) -> dict[str, float]:
    return {}


def measured(model: torch.nn.Module, batch, factors=None):
    twin = audit_step.measurable(model, "float64")
    return measure_tokens(twin, dict(twin.named_parameters()), batch, factors, nothing)


def test_where_the_model_is_tabular_influence_is_the_discriminant() -> None:
    """A table whose rows no two tokens share: n D is −S_c exactly."""
    batch = sampled()
    ids = torch.arange(3, 3 + 3 * 6).view(6, 3)  # every context ends in a token of its own
    batch = replace(
        batch,
        prompt_ids=ids[:, :1],
        prompt_mask=torch.ones(6, 1, dtype=torch.long),
        completion_ids=ids[:, 1:],
        completion_mask=torch.ones(6, 2, dtype=torch.long),
        advantages=batch.advantages[:, :2],
    )
    arrays, scalars = measured(Bigrams(), batch)
    torch.testing.assert_close(arrays["influence_same"], -arrays["centered_discriminant"], rtol=1e-10, atol=1e-14)
    # the other half's contexts are other rows of the table
    assert arrays["influence_crossed"].abs().max() < 1e-14
    expected = (batch.advantages[batch.valid] * arrays["influence_same"]).mean() / len(arrays["influence_same"])
    assert scalars["influence_total"] == pytest.approx(float(expected), rel=1e-5)  # the advantages are float32


def test_one_group_has_no_crossed_contexts() -> None:
    batch = replace(sampled(), group_ids=torch.zeros(6, dtype=torch.long))
    arrays, _ = measured(small_decoder(), batch)
    assert "influence_crossed" not in arrays
    n = len(arrays["influence_same"])
    held = {name: values.numpy() for name, values in arrays.items()}
    held |= {"group": np.arange(n) % 3, "coefficient": np.ones(n), "quadrant": np.ones(n), "entropy": np.arange(n)}
    assert tokens_summary([held], 5)["crossed"] is None
    assert not any(name.endswith("crossed") for name in token_row(held))


def test_the_predicted_mean_is_what_small_steps_realise() -> None:
    batch, ratios = sampled(), []
    for rate in (0.01, 0.005, 0.0025):
        model = small_decoder()
        _, scalars = measured(model, batch)
        before, after, _ = step(model, batch, torch.optim.SGD(model.parameters(), lr=rate))
        change = float((entropies(model, after, batch) - entropies(model, before, batch)).mean())
        ratios.append(change / (rate * scalars["influence_total"]) - 1)
    assert abs(ratios[-1]) < 0.1
    assert [a / b for a, b in pairwise(ratios)] == pytest.approx([2, 2], rel=0.2)  # what is left is of second order


def test_weights_leave_out_tokens_without_a_coefficient() -> None:
    x, y, groups = columns()
    g = np.where(groups < 10, 0.0, np.random.default_rng(1).standard_normal(400))
    held = {"group": groups, "coefficient": g, "quadrant": groups % 5, "entropy": np.abs(x)}
    summary = tokens_summary([held | {"centered_discriminant": -x, "influence_same": y}], 5)["same"]
    inside = g != 0
    weighted = summary["weighted"]["overall"]
    assert weighted["tokens"] == inside.sum()
    expected = stats.pearsonr((g * x)[inside], (g * y)[inside]).statistic
    assert weighted["pearson"]["value"] == pytest.approx(expected, rel=1e-5)
    assert summary["plain"]["overall"]["tokens"] == 400
    assert sum(row["tokens"] for row in summary["plain"]["deciles"]) == 400
    assert [summary["plain"]["quadrants"][f"q{q}"]["tokens"] for q in (1, 2, 3, 4)] == [
        (groups % 5 == q).sum() for q in (1, 2, 3, 4)
    ]


def adam_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch, **changes: float):
    """What a copy of the optimizer, changed, does with the same gradient; its first moment may be taken away."""
    twin = copy.deepcopy(model)
    other = torch.optim.AdamW(twin.parameters(), lr=RATE)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in other.param_groups:
        group["weight_decay"] = changes.get("weight_decay", group["weight_decay"])
    if changes.get("forget"):
        for state in other.state.values():
            state["exp_avg"].zero_()
    before, after, _ = step(twin, batch, other)
    return {name: after[name] - before[name] for name in before}


def test_parts_of_an_adam_step_are_those_of_optimizers_that_step() -> None:
    batch, model = sampled(), small_decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.3)
    step(model, batch, optimizer)
    moved = {
        "now": adam_step(model, optimizer, batch, weight_decay=0.0, forget=1.0),
        "without decay": adam_step(model, optimizer, batch, weight_decay=0.0),
        "whole": adam_step(model, optimizer, batch),
    }
    start = audit_step.measurable(model, "float64")
    before, after, gradient = step(model, batch, optimizer)
    slope = {name: torch.randn_like(p) for name, p in before.items()}
    parts = first_order_parts(optimizer, dict(model.named_parameters()), before, gradient, slope)
    along = {name: sum(float((slope[key] * change[key]).sum()) for key in slope) for name, change in moved.items()}
    size = sum(map(abs, along.values()))
    assert parts["now"] == pytest.approx(along["now"], abs=1e-12 * size)
    assert parts["momentum"] == pytest.approx(along["without decay"] - along["now"], abs=1e-12 * size)
    assert parts["decay"] == pytest.approx(along["whole"] - along["without decay"], abs=1e-12 * size)
    assert min(map(abs, parts.values())) > 1e-6 * size
    # the same "now" from the tokens: η (1−β₁)/(1−β₁²) Σ g D/n, with D in Adam's metric
    factors = preconditioner(optimizer, dict(model.named_parameters()))
    trained = dict(start.named_parameters())

    def of_slope(slope: dict[str, torch.Tensor]) -> dict[str, float]:
        return first_order_parts(optimizer, dict(model.named_parameters()), before, gradient, slope)

    _, scalars = measure_tokens(start, trained, batch, factors, of_slope)
    rate = RATE * (1 - 0.9) / (1 - 0.9**2)
    assert scalars["first_order_now"] == pytest.approx(rate * scalars["influence_total"], rel=1e-9)
    arrays, _ = measure_step(start, before, after, gradient, batch, positions=1)
    in_all = sum(scalars[f"first_order_{name}"] for name in ("now", "momentum", "decay"))
    assert in_all == pytest.approx(float(arrays["parameters"].mean()), rel=1e-9)


def test_plain_sgd_has_no_momentum() -> None:
    batch, model = sampled(), small_decoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    before, after, gradient = step(model, batch, optimizer)
    parameters = dict(model.named_parameters())
    slope = {name: torch.ones_like(p) for name, p in before.items()}
    parts = first_order_parts(optimizer, parameters, before, gradient, slope)
    assert parts["now"] == pytest.approx(sum(float((after[n] - before[n]).sum()) for n in before), rel=1e-9)
    assert parts["momentum"] == parts["decay"] == 0


def test_means_of_steps_written_out() -> None:
    part = {"held_out_fixed": -0.2, "held_out_shift": 0.1, "held_out_effective_sample_size": 30, "held_out_tokens": 40}
    errors = {"held_out_fixed_error": 0.03, "held_out_shift_error": 0.04, "held_out_change_error": 0.05}
    first = {"mean_realised": -1.0, "mean_token": 0.5, "mean_context": 0.0, "first_order_now": -2.0} | part | errors
    rows = [first | {"mean_parameters": -1.0}, first | {"mean_realised": 3.0, "mean_parameters": 1.0}]
    summary = means_summary(rows)
    assert summary["token"] == {"signs_right": 1, "slope": 2.0}  # (−.5 + 1.5)/(.25 + .25)
    assert summary["context"] == {"signs_right": 0, "slope": None}
    assert summary["in_all"] == {"signs_right": 2, "slope": 2.0}
    assert summary["held_out"]["change"] == {"mean": -0.1, "error": pytest.approx(0.05 / 2**0.5, rel=1e-5)}
    assert summary["smallest_sample_share"] == 0.75
    del rows[0]["held_out_fixed_error"]
    assert means_summary(rows)["held_out"]["fixed"] == {"mean": -0.2, "error": None}
