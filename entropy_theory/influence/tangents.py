"""Tangents of a policy's logits along a direction in the weights, and what they make of each sampled token.

For a direction v in the weights the logits of a position move by u = J v. Of every token's u only

    D(y) = u_y − E_p[u]        N_u = E_p[u] − mean_i u_i        S_u(y) = u_y − mean_i u_i

is kept, for the token that was sampled. Two ways lead to u: a Jacobian-vector product, exact, and the central
difference of the logits at θ ± hv, for models that forward-mode derivatives do not go through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from entropy_theory.errors import InputError, invalid
from entropy_theory.influence.model_view import ModelView, Parameters
from entropy_theory.vocab import TokenStatistics, token_statistics
from entropy_theory.vocab.statistics import FIELDS


class NoForwardModeError(InputError):
    """A layer of the model has no forward-mode derivative; the message names it."""


TRIAL_ROWS = 8
"""Rows on which the step of the central difference is chosen."""


@dataclass(frozen=True, eq=False)
class Tangents:
    """What a direction does to the logits of each position, (B, T), zero at invalid ones.

    Attributes:
        statistics: Of the policy itself.
        influence: D, u_y − E_p[u], which is ⟨v, ∇log p_y⟩.
        level: E_p[u] − mean_i u_i.
        error: Estimated root mean square error of D; 0 for a derivative.
    """

    statistics: TokenStatistics
    influence: Tensor
    level: Tensor
    error: float


def tangents(view: ModelView, directions: Sequence[tuple[Tensor, Parameters]], method: str) -> Tangents:
    """Move the logits of a batch along directions in the weights.

    Args:
        view: The batch and the model.
        directions: Rows by number, and the direction for them.
        method: "jvp" or "difference".
    """
    whole = {
        name: torch.zeros(view.mask.shape, dtype=view.dtype, device=view.mask.device)
        for name in (*FIELDS, "influence", "level")
    }
    step, errors, impl = 0.0, [0.0], ""
    for mine, v in directions:
        if method == "difference":
            step, error = difference_step(view, v, mine)
            errors.append(error)
        for rows in view.blocks(mine):
            inside = view.mask[rows]
            tokens = view.batch.completion_ids[rows][inside]
            logits, u = (values[inside] for values in _moved(view, rows, v, step))
            p = logits.softmax(-1)
            u = torch.where(logits > -torch.inf, u, 0.0)  # a forbidden token has no part; one whose p underflows has
            level = (p * u).sum(-1)
            statistics = token_statistics(logits, tokens)
            measured = {name: getattr(statistics, name) for name in FIELDS}
            measured["influence"] = u.gather(-1, tokens[:, None])[:, 0] - level
            measured["level"] = level - u.mean(-1)
            for name, values in measured.items():
                if not bool(torch.isfinite(values).all()):
                    expected = "finite statistics and derivatives"
                    raise invalid("model", expected, f"NaN or infinity in the {name} of a token")
                view.put(whole[name], rows, values)
            impl = statistics.impl
    return Tangents(statistics_of(whole, impl), whole["influence"], whole["level"], max(errors))


def statistics_of(whole: Mapping[str, Tensor], impl: str) -> TokenStatistics:
    """Make token statistics of (B, T) columns."""
    fields = {name: whole[name] for name in FIELDS}
    return TokenStatistics(**fields, sum_squared_discriminant=None, grpo_curvature=None, impl=impl)


def _moved(view: ModelView, rows: Tensor, v: Parameters, step: float) -> tuple[Tensor, Tensor]:
    """Logits of some rows and their tangent along v; by a difference if a step is given."""
    if step:
        with torch.no_grad():
            above, below = (view.logits(_shifted(view.start, v, sign * step), rows) for sign in (1, -1))
        return 0.5 * (above + below), (above - below) / (2 * step)
    # Dual tensors and not torch.func.jvp: gradient checkpointing leaves hooks that it does not allow.
    with torch.no_grad(), _named_layer(view.model), forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(value, v[name]) for name, value in view.start.items()}
        logits, moved = forward_ad.unpack_dual(view.logits(dual, rows))
    return logits, torch.zeros_like(logits) if moved is None else moved


def _shifted(start: Parameters, v: Mapping[str, Tensor], step: float) -> Parameters:
    return {name: value + step * v[name] for name, value in start.items()}


@contextmanager
def _named_layer(model: nn.Module) -> Iterator[None]:
    """Name the layer in an error of a module without a forward-mode derivative."""
    entered: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, arguments: Any) -> None:
        entered.append(names[module])

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        entered.pop()

    hooks = [hook for m in names for hook in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if "forward AD" not in str(error) and "forward-mode" not in str(error) and "jvp" not in str(error):
            raise
        layer = entered[-1] if entered else ""
        named = f"layer {layer!r} ({type(model.get_submodule(layer)).__name__})"
        reason = str(error).splitlines()[0]
        expected = f"'difference': {named} has no forward-mode derivative"
        raise NoForwardModeError(str(invalid("method", expected, f"'jvp' ({reason})"))) from None
    finally:
        for hook in hooks:
            hook.remove()


def _length(v: Parameters) -> float:
    """‖v‖; squares of a small gradient would underflow in float32."""
    return math.hypot(*(float(torch.linalg.vector_norm(value, dtype=torch.float64)) for value in v.values()))


@torch.no_grad()
def difference_step(view: ModelView, v: Parameters, mine: Tensor) -> tuple[float, float]:
    """Choose the step h of the central difference of log p along v, and estimate the error at it.

    A difference is off by the rounding σ/(√2 h) of two log-probabilities and by c h² of their third derivative. σ is
    the root mean square change of log p when every weight is off by half a unit in its last place; c comes from the
    differences at h₀ and 2h₀. The sum is least at h³ = σ/(2√2 c).

    Args:
        view: The batch and the model.
        v: The direction.
        mine: The rows that it is for; the first `TRIAL_ROWS` of them are tried.

    Returns:
        h, and the estimated root mean square error of the difference.
    """
    rows = next(view.blocks(mine))[:TRIAL_ROWS]
    inside = view.mask[rows]
    tokens = view.batch.completion_ids[rows][inside]

    def log_probs(parameters: Parameters) -> Tensor:
        return token_statistics(view.logits(parameters, rows)[inside], tokens).log_probs.double()

    length, size = _length(v), _length(view.start)
    if not length:
        return 1.0, 0.0
    eps = torch.finfo(view.dtype).eps
    base, generator = log_probs(view.start), torch.Generator().manual_seed(0)
    off = {}
    for name, value in view.start.items():
        sign = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
        off[name] = value + 0.5 * eps * sign * value
    noise = float((log_probs(off) - base).square().mean().sqrt()) or eps

    def slopes(step: float) -> Tensor:
        above, below = (log_probs(_shifted(view.start, v, sign * step)) for sign in (1, -1))
        return (above - below) / (2 * step)

    step = eps ** (1 / 3) * (size or 1.0) / length  # moves the weights by a share ε^(1/3) of their length
    error = 0.0
    for _ in range(4):  # the third derivative is found where it stands out of the rounding, or h grows until it does
        bend = float((slopes(2 * step) - slopes(step)).square().mean().sqrt()) / (3 * step**2)
        best = (noise / (2 * 2**0.5 * bend)) ** (1 / 3) if bend else 4 * step
        moved_to = min(max(best, step / 8), 8 * step)
        near = 0.5 < moved_to / step < 2
        step = moved_to
        error = noise / (2**0.5 * step) + bend * step**2
        if near:
            break
    return step, error
