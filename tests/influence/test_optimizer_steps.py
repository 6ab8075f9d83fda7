"""The parts of a step against torch's own optimizers, and against optimizers that have only one of the parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from entropy_theory.influence import gradient_only_update, preconditioner, step_parts

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS = {
    "sgd": (SGD, {}),
    "sgd, momentum and decay": (SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "sgd, nesterov": (SGD, {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True}),
    "sgd, maximize": (SGD, {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
    "adam": (ADAM, {}),
    "adam, coupled decay": (ADAM, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "adam, amsgrad": (ADAM, {"amsgrad": True, "weight_decay": 0.1}),
    "adam, decoupled decay": (ADAM, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    "adamw": (ADAMW, {"weight_decay": 0.1}),
    "adamw, fused": (ADAMW, {"weight_decay": 0.1, "fused": True}),
    "adamw, maximize": (ADAMW, {"weight_decay": 0.1, "maximize": True}),
}
PARTS = ("now", "momentum", "decay")


def gradients(steps: int, scale: float = 1.0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (3, 4), "bias": (3,)}
    drawn = [
        {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()} for _ in range(steps)
    ]
    drawn[-1] = {name: scale * value for name, value in drawn[-1].items()}
    return drawn


def run(
    kind: Callable[..., Any], options: dict[str, Any], given: list[dict[str, Tensor]], **changes: Any
) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """The optimizer after its steps, the weights before the last one, and the weights after it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Linear(4, 3, dtype=torch.float64)
    optimizer = kind(model.parameters(), lr=0.03, **(options | changes))
    for gradient in given:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name].clone()
        optimizer.step()
    return optimizer, before, dict(model.named_parameters())


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parts_add_up_to_the_step(name: str, steps: int) -> None:
    kind, options = OPTIMIZERS[name]
    given = gradients(steps)
    optimizer, before, after = run(kind, options, given)
    parts = step_parts(optimizer, after, before, given[-1])
    for key in before:
        whole = sum(getattr(parts, part)[key] for part in PARTS)
        # the step is of the order of 0.03 and is read off weights of the order of 1
        torch.testing.assert_close(whole, after[key].detach() - before[key], rtol=1e-12, atol=1e-15)
        assert bool(parts.momentum[key].abs().max() > 1e-6) == (steps > 1 and name != "sgd")
        assert bool(parts.decay[key].any()) == ("weight_decay" in options)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name.startswith("sgd")])
def test_now_is_what_another_gradient_would_change(name: str) -> None:
    """SGD is linear in the last gradient: without it the step has no part ``now``, and the others stay."""
    kind, options = OPTIMIZERS[name]
    steps = [run(kind, options, given) for given in (gradients(4), gradients(4, scale=0.0))]
    (optimizer, before, after), (_, _, without) = steps
    parts = step_parts(optimizer, after, before, gradients(4)[-1])
    for key in before:
        torch.testing.assert_close(parts.now[key], (after[key] - without[key]).detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["sgd, momentum and decay", "sgd, nesterov", "adamw", "adam, decoupled decay"])
def test_decay_is_what_an_optimizer_without_it_would_not_do(name: str) -> None:
    """In the first step, from the same weights and gradient."""
    kind, options = OPTIMIZERS[name]
    given = gradients(1)
    optimizer, before, after = run(kind, options, given)
    _, _, without = run(kind, options, given, weight_decay=0.0)
    parts = step_parts(optimizer, after, before, given[-1])
    for key in before:
        torch.testing.assert_close(parts.decay[key], (after[key] - without[key]).detach(), rtol=1e-12, atol=1e-15)


def test_adam_from_nothing_is_the_gradient_in_its_metric() -> None:
    """Kingma and Ba: in the first step m̂ = g and v̂ = g², so the step is −η g / (|g| + ε)."""
    given = gradients(1)
    optimizer, _, after = run(ADAM, {"eps": 0.1}, given)
    found = gradient_only_update(optimizer, after, given[0])
    metric = preconditioner(optimizer, after)
    for key, gradient in given[0].items():
        torch.testing.assert_close(metric[key], 1 / (gradient.abs() + 0.1), rtol=1e-12, atol=0)
        torch.testing.assert_close(found[key], -0.03 * gradient / (gradient.abs() + 0.1), rtol=1e-12, atol=0)


def test_the_metric_of_adam_later_and_of_sgd() -> None:
    given = gradients(3)
    optimizer, _, after = run(ADAMW, {"betas": (0.9, 0.5), "eps": 0.0}, given)
    weights = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64) / 1.75  # of the squares, the oldest first
    for key, metric in preconditioner(optimizer, after).items():
        squares = sum(w * step[key] ** 2 for w, step in zip(weights, given, strict=True))
        torch.testing.assert_close(metric, squares.rsqrt(), rtol=1e-12, atol=0)
    optimizer, _, after = run(SGD, {}, given)
    assert all(torch.equal(metric, torch.ones_like(metric)) for metric in preconditioner(optimizer, after).values())


def test_refusals() -> None:
    class Own(ADAMW):
        """May step in any way."""

    given = gradients(1)
    for kind, name in ((torch.optim.RMSprop, "RMSprop"), (Own, "Own"), (torch.optim.NAdam, "NAdam")):
        optimizer, before, after = run(kind, {}, given)
        with pytest.raises(ValueError, match=f"optimizer: expected torch's SGD, Adam or AdamW, received {name}"):
            step_parts(optimizer, after, before, given[0])
        with pytest.raises(ValueError, match=f"received {name}"):
            preconditioner(optimizer, after)
    optimizer, before, after = run(SGD, {"momentum": 0.9, "dampening": 0.5}, given)
    with pytest.raises(ValueError, match=r"optimizer: expected SGD without dampening, received dampening = 0\.5"):
        step_parts(optimizer, after, before, given[0])
    optimizer, before, after = run(ADAMW, {}, given)
    with pytest.raises(ValueError, match="parameters: expected parameters that the optimizer holds, received other"):
        step_parts(optimizer, after, before, {"other": given[0]["bias"]})
    with pytest.raises(ValueError, match="optimizer: expected one that has made a step on weight"):
        preconditioner(ADAMW(after.values()), after)
    narrow = {name: value[:1] for name, value in given[0].items()}  # would broadcast
    with pytest.raises(ValueError, match=r"gradient: expected a tensor of shape \(.*\) for "):
        step_parts(optimizer, after, before, narrow)
    with pytest.raises(ValueError, match=r"gradient: expected a tensor of shape \(.*\) for "):
        gradient_only_update(optimizer, after, narrow)
    with pytest.raises(ValueError, match=r"before: expected a tensor of shape \(.*\) for .*, received NoneType"):
        step_parts(optimizer, after, {}, given[0])
