"""The parts of an optimizer's step: what the present gradient does, what earlier gradients left, and weight decay.

With g the gradient that the optimizer is given, θ⁻ the weights before the step, w the weight decay and η the rate:

    SGD:    d = g + w θ⁻,   b = μ b⁻ + d,   Δθ = −η b;   Nesterov: Δθ = −η (d + μ b)
    Adam:   d = g + w θ⁻ (AdamW: d = g),   m = β₁ m⁻ + (1 − β₁) d,   Δθ = −η/(1 − β₁^τ) P m  (AdamW: − η w θ⁻)

P = 1/(√v̂ + ε), elementwise, with the second moment v̂ after the step. At that P each step is linear in g, in the earlier
buffer and in θ⁻, so it has exactly three parts. Everything is read from the optimizer's state after the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropy_theory.errors import invalid


@dataclass(frozen=True, eq=False)
class StepParts:
    """The three parts of an optimizer's step, by parameter name, in float64; their sum is Δθ.

    Attributes:
        now: What the optimizer makes of the present gradient alone.
        momentum: What earlier gradients left in its buffer; with Adam's coupled decay also what earlier decay left.
        decay: Weight decay of this step.
    """

    now: dict[str, Tensor]
    momentum: dict[str, Tensor]
    decay: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Step:
    """The numbers of one parameter's step, read after it.

    Δθ = direction · (present d + carried (buffer − inside d)) − decoupled θ⁻   with d = sign g + coupled θ⁻.
    """

    name: str
    metric: Tensor | float  # P
    direction: Tensor | float  # −rate P
    present: float
    buffer: Tensor | None  # after the step, with ``inside`` d in it
    inside: float
    carried: float
    coupled: float
    decoupled: float
    sign: float  # −1 where the optimizer maximises


def check_optimizer(optimizer: Any) -> Any:
    """Check that steps of an optimizer can be split; return it without accelerate's wrapper.

    Raises:
        ValueError: It is neither torch's SGD, Adam nor AdamW (a derived class may step otherwise), or SGD has
            dampening, whose first step differs from the later ones.

    Example:
        >>> check_optimizer(torch.optim.RMSprop([torch.nn.Parameter(torch.ones(1))]))
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: optimizer: expected torch's SGD, Adam or AdamW, received RMSprop
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if type(optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        raise invalid("optimizer", "torch's SGD, Adam or AdamW", type(optimizer).__name__)
    for group in optimizer.param_groups:
        if group.get("dampening"):
            raise invalid("optimizer", "SGD without dampening", f"dampening = {group['dampening']}")
    return optimizer


@torch.no_grad()
def step_parts(
    optimizer: Any, parameters: Mapping[str, Tensor], before: Mapping[str, Tensor], gradient: Mapping[str, Tensor]
) -> StepParts:
    """Split the step that the optimizer has just made.

    Args:
        optimizer: torch's SGD, Adam or AdamW, after the step and before its rate is changed.
        parameters: The parameters that the optimizer holds, by name.
        before: θ⁻, by name, of those that had a gradient.
        gradient: g as the optimizer was given it, clipped, by name.

    Returns:
        The parts, for the names of ``gradient``.

    Raises:
        ValueError: As `check_optimizer`, a parameter with a gradient is not the optimizer's, or its gradient or
            θ⁻ has another shape.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, weight_decay=0.5)
        >>> weight.grad = torch.tensor([3.0])
        >>> sgd.step()
        >>> parts = step_parts(sgd, {"w": weight}, {"w": torch.tensor([2.0])}, {"w": torch.tensor([3.0])})
        >>> [round(float(part["w"]), 6) for part in (parts.now, parts.momentum, parts.decay)]
        [-0.3, 0.0, -0.1]
    """
    now, momentum, decay = {}, {}, {}
    for step in _steps(optimizer, parameters, gradient):
        shape = parameters[step.name].shape
        pulled = step.sign * _of_shape("gradient", gradient, step.name, shape).double()
        weights = _of_shape("before", before, step.name, shape).double()
        now[step.name] = step.direction * (step.present * pulled)
        decay[step.name] = step.direction * (step.present * step.coupled * weights) - step.decoupled * weights
        momentum[step.name] = torch.zeros_like(pulled)
        if step.buffer is not None:
            earlier = step.buffer - step.inside * (pulled + step.coupled * weights)
            momentum[step.name] = step.direction * (step.carried * earlier)
    return StepParts(now, momentum, decay)


@torch.no_grad()
def gradient_only_update(
    optimizer: Any, parameters: Mapping[str, Tensor], gradient: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Compute the update of this gradient without any earlier one and without decay: −η g, in Adam's metric.

    Args:
        optimizer: As for `step_parts`.
        parameters: The parameters that the optimizer holds, by name.
        gradient: g as the optimizer was given it, by name.

    Returns:
        The part ``now`` of `step_parts`, in float64.

    Raises:
        ValueError: As `step_parts`.
    """
    now = {}
    for step in _steps(optimizer, parameters, gradient):
        pulled = _of_shape("gradient", gradient, step.name, parameters[step.name].shape).double()
        now[step.name] = step.direction * (step.present * step.sign * pulled)
    return now


@torch.no_grad()
def preconditioner(optimizer: Any, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the diagonal P of the last step's metric: 1/(√v̂ + ε) for Adam and AdamW, ones for SGD.

    Args:
        optimizer: torch's SGD, Adam or AdamW, after the step.
        parameters: Parameters that the optimizer holds, by name.

    Returns:
        P by name, with the parameter's shape, in float64. The step of a gradient g alone is a multiple of −P g.

    Raises:
        ValueError: As `check_optimizer`; a parameter is not the optimizer's, or Adam has made no step on it.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> adam = torch.optim.Adam([weight], eps=0.0)
        >>> weight.grad = torch.tensor([2.0, -0.5])
        >>> adam.step()
        >>> preconditioner(adam, {"w": weight})["w"].round(decimals=4).tolist()
        [0.5, 2.0]
    """
    return {
        step.name: torch.ones_like(parameters[step.name], dtype=torch.float64) * step.metric
        for step in _steps(optimizer, parameters, parameters)
    }


def _of_shape(argument: str, given: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    value = given.get(name)
    if not isinstance(value, Tensor) or value.shape != shape:
        received = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise invalid(argument, f"a tensor of shape {tuple(shape)} for {name}", received)
    return value


def _steps(optimizer: Any, parameters: Mapping[str, Tensor], names: Mapping[str, Any]) -> Iterator[_Step]:
    """Read the numbers of the step of each named parameter."""
    optimizer = check_optimizer(optimizer)
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name in names:
        parameter = parameters.get(name)
        if parameter is None or parameter not in groups:
            raise invalid("parameters", "parameters that the optimizer holds", name)
        group, state = groups[parameter], optimizer.state.get(parameter, {})
        rate, decay = float(group["lr"]), float(group["weight_decay"])
        sign = -1.0 if group["maximize"] else 1.0
        if isinstance(optimizer, torch.optim.SGD):
            buffer = state.get("momentum_buffer")
            buffer = None if buffer is None else buffer.double()
            carried = (
                float(group["momentum"]) if group["nesterov"] else 1.0
            )  # Nesterov: d + μ b = (1 + μ) d + μ (b − d)
            present = 1 + carried if group["nesterov"] else 1.0
            yield _Step(name, 1.0, -rate, present, buffer, 1.0, carried, decay, 0.0, sign)
        else:
            if "exp_avg_sq" not in state:
                raise invalid("optimizer", f"one that has made a step on {name}", "none so far")
            first, second = (float(beta) for beta in group["betas"])
            made = float(state["step"])
            moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
            metric = 1 / ((moment.double() / (1 - second**made)).sqrt() + group["eps"])
            direction = -rate / (1 - first**made) * metric
            decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
            coupled = 0.0 if decoupled else decay
            outside = rate * decay if decoupled else 0.0
            buffer = state["exp_avg"].double()
            yield _Step(name, metric, direction, 1 - first, buffer, 1 - first, 1.0, coupled, outside, sign)
