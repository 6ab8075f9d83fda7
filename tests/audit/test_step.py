"""One measured step against what does not use it: finite differences, single tokens, a model that is tabular."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from audit_models import RATE, Bigrams, entropies, log_probs, sampled, small_decoder, step

from entropy_theory.audit import step as audit_step
from entropy_theory.audit.step import PIECES, measure_step
from entropy_theory.influence import gradient_only_update, model_view
from entropy_theory.influence.model_view import full_precision


@pytest.fixture(scope="module", params=[1.0, 0.7])
def measured(request: pytest.FixtureRequest):
    batch, model = replace(sampled(), temperature=request.param), small_decoder()
    sides = step(model, batch)
    twin = audit_step.measurable(model, "float64")
    arrays, scalars = measure_step(twin, *sides, batch, positions=1000)
    return batch, model, sides, arrays, scalars


def test_first_order_is_the_derivative(measured) -> None:
    batch, model, (before, after, _), arrays, scalars = measured

    def at(t: float) -> torch.Tensor:
        return entropies(model, {name: b + t * (after[name] - b) for name, b in before.items()}, batch)

    # a difference of fourth order: its error at h = 1/4 is h⁴ of changes that are themselves 1e-3 of H
    h = 0.25
    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    torch.testing.assert_close(arrays["parameters"], difference, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(arrays["entropy"], at(0.0), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(arrays["realised"], at(1.0) - at(0.0), rtol=0, atol=1e-14)
    assert 0 < scalars["noise_floor"] < 1e-14


def test_the_pieces_make_the_whole(measured) -> None:
    *_, arrays, scalars = measured
    whole = sum(arrays[name] for name in PIECES)
    # forward against reverse mode in float64; the largest change is about 1e-4
    torch.testing.assert_close(whole, arrays["parameters"][arrays["chosen"]], rtol=1e-9, atol=1e-16)
    assert scalars["step_size"] == pytest.approx(RATE, rel=1e-12)
    assert scalars["cosine"] == pytest.approx(1, rel=1e-12)
    assert scalars["clip_factor"] == pytest.approx(1, rel=1e-12)
    for name in ("rest", "preconditioning", "momentum"):
        assert arrays[name].abs().max() < 1e-10 * arrays["sharing"].abs().max()


def test_pieces_against_every_token_by_itself(measured) -> None:
    batch, model, _, arrays, _ = measured
    model = audit_step.measurable(model, "float64").requires_grad_(True)
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), measured[2][0].values(), strict=True):
            parameter.copy_(value)
    inside = batch.completion_mask.bool()
    words = [
        tuple(batch.prompt_ids[r][batch.prompt_mask[r].bool()].tolist()) + tuple(batch.completion_ids[r, :t].tolist())
        for r, t in inside.nonzero().tolist()
    ]
    with full_precision(torch.float64):
        terms = log_probs(model, batch)[inside] * batch.advantages.double()[inside] / inside.sum()
        each = [
            torch.cat([g.flatten() for g in torch.autograd.grad(t, model.parameters(), retain_graph=True)])
            for t in terms
        ]
        ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
        attention = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, 2:-1][inside]
        logs = (logits / batch.temperature).log_softmax(-1)
        H = -(logs.exp() * logs).sum(-1)
        for place in (0, 2, 5, 12):  # 0, 2 and 5: positions of the two completions that begin alike
            slope = torch.cat(
                [g.flatten() for g in torch.autograd.grad(H[place], model.parameters(), retain_graph=True)]
            )
            effects = RATE * torch.stack([slope @ g for g in each])
            alike = torch.tensor([w == words[place] for w in words])
            expected = {"own": effects[place], "context": effects[alike].sum() - effects[place]}
            expected["sharing"] = effects[~alike].sum()
            for name, value in expected.items():
                torch.testing.assert_close(arrays[name][place], value, rtol=1e-9, atol=1e-16)
    assert len(names) > 5


def test_the_output_matrix_has_its_closed_form(measured) -> None:
    *_, arrays, _ = measured
    torch.testing.assert_close(arrays["output"], arrays["output_closed"], rtol=1e-9, atol=1e-16)


def test_training_the_output_matrix_alone_is_its_closed_form() -> None:
    batch, model = sampled(), small_decoder(head_only=True)
    sides = step(model, batch)
    arrays, _ = measure_step(audit_step.measurable(model, "float64"), *sides, batch, positions=1000)
    torch.testing.assert_close(arrays["output_closed"], arrays["parameters"], rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_where_the_model_is_tabular_the_theory_is_exact(temperature: float) -> None:
    batch = sampled()
    previous = torch.cat([batch.prompt_ids[:, -1:], batch.completion_ids[:, :-1]], dim=1)
    batch = replace(batch, contexts=previous, temperature=temperature)
    remainders = []
    for rate in (0.8, 0.4, 0.2):
        model = Bigrams()
        sides = step(model, batch, torch.optim.SGD(model.parameters(), lr=rate))
        arrays, scalars = measure_step(model.requires_grad_(False), *sides, batch, positions=1000)
        torch.testing.assert_close(arrays["context_1"], arrays["parameters"], rtol=1e-10, atol=1e-16)
        torch.testing.assert_close(arrays["own"], arrays["token_1"][arrays["chosen"]], rtol=1e-10, atol=1e-16)
        assert arrays["sharing"].abs().max() < 1e-12 * arrays["own"].abs().max()
        assert scalars["step_size"] == pytest.approx(rate, rel=1e-12)
        assert "output" not in arrays
        remainders.append(float((arrays["realised"] - arrays["context_1"] - arrays["context_2"]).abs().max()))
    ratios = [a / b for a, b in pairwise(remainders)]
    assert ratios == pytest.approx([8, 8], rel=0.15)  # what is left is of third order


def test_a_context_with_one_token_has_one_second_order() -> None:
    batch = sampled()
    model = Bigrams()
    apart = replace(batch, contexts=torch.arange(batch.completion_ids.numel()).view(batch.completion_ids.shape))
    arrays, _ = measure_step(Bigrams().requires_grad_(False), *step(model, batch), apart, positions=3)
    torch.testing.assert_close(arrays["context_2"], arrays["token_2"], rtol=1e-9, atol=1e-20)
    assert arrays["own"].shape == arrays["chosen"].shape == (3,)


def test_adam_from_nothing_has_no_momentum_and_later_some() -> None:
    batch, model = sampled(), small_decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    found = []
    for _ in range(2):
        before, after, gradient = step(model, batch, optimizer)
        alone = gradient_only_update(optimizer, dict(model.named_parameters()), gradient)
        twin = audit_step.measurable(model, "float64")
        arrays, scalars = measure_step(twin, before, after, gradient, batch, alone=alone, positions=8)
        whole = sum(arrays[name] for name in PIECES)
        torch.testing.assert_close(whole, arrays["parameters"][arrays["chosen"]], rtol=1e-9, atol=1e-15)
        assert 0.1 < scalars["cosine"] < 0.999
        found.append(float(arrays["momentum"].abs().max() / arrays["parameters"].abs().max()))
    assert found[0] < 1e-9
    assert found[1] > 0.1


def test_nothing_to_measure_is_refused() -> None:
    batch, model = sampled(), Bigrams()
    before, after, gradient = step(model, batch)
    with pytest.raises(ValueError, match="gradient: expected a finite gradient and a step"):
        measure_step(model.requires_grad_(False), before, before, gradient, batch)
    spoiled = {name: value * float("nan") for name, value in gradient.items()}
    with pytest.raises(ValueError, match="gradient: expected a finite gradient and a step"):
        measure_step(model, before, after, spoiled, batch)
    empty = replace(batch, completion_mask=torch.zeros_like(batch.completion_mask))
    with pytest.raises(ValueError, match="batch: expected at least one valid token"):
        measure_step(model, before, after, gradient, empty)


def test_blocks_of_rows_do_not_matter(measured, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model, sides, arrays, _ = measured
    monkeypatch.setattr(model_view, "LOGITS_BUDGET", 1)  # one row at a time
    alone, _ = measure_step(audit_step.measurable(model, "float64"), *sides, batch, positions=1000)
    for name, values in arrays.items():
        # sums over rows in another order; changes are of the order of 1e-4
        torch.testing.assert_close(alone[name], values, rtol=1e-9, atol=1e-15)
