"""Which token of a step moves mean entropy, and by how much: exact to first order, in a model with shared parameters.

An update Δθ = η P ∇J with J = (1/n) Σ_t g_t log p_t changes the mean entropy H̄ of fixed contexts by

    ΔH̄ = (η/n) Σ_t g_t D_t + O(η²)        D_t = ⟨P ∇H̄, ∇log p_t⟩ = u_{t,y} − E_{p_t}[u_t],  u_t = J_t P ∇H̄

(part E of the theory notes). One backward gives ∇H̄, one forward-mode pass the tangents u of all tokens' logits. Where
every position has logits of its own, D_t = −S_c,t/n: the tabular theory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from entropy_theory.errors import invalid
from entropy_theory.influence.model_view import ModelView, Parameters, full_precision, inner_product, observed
from entropy_theory.influence.output_layer import through_output_matrix
from entropy_theory.influence.step_batch import StepBatch
from entropy_theory.influence.tangents import NoForwardModeError, Tangents, statistics_of, tangents
from entropy_theory.vocab import TokenStatistics

Contexts = Literal["same", "crossed"]
Method = Literal["auto", "jvp", "difference", "output"]
Check = Literal["sample", "all", "none"]
Preconditioner = Mapping[str, Tensor] | Callable[[Parameters], Parameters]


@dataclass(frozen=True, eq=False)
class Influence:
    """What each token of a step does to the mean entropy of the step's contexts.

    Tensors are (B, T), zero at invalid positions, float32 or wider.

    Attributes:
        values: D_t, in nats per unit of (η/n) g_t.
        log_probs: log p_t, nats.
        entropy: h_t, nats.
        centered_discriminant: S_c,t. The tabular theory has −S_c,t/n for D_t.
        coefficients: g_t.
        count: n, the number of valid tokens.
        total: Σ_t g_t D_t/n, the predicted change of mean entropy for η = 1. Over crossed contexts: what each half's
            tokens do to the other half's mean, added up.
        check: Relative distance of Σ g D/n from ⟨∇J, P ∇H̄⟩, with ∇J by reverse mode, over the checked rows; NaN where
            none was checked.
        error: Estimated root mean square error of the values by "difference"; 0 for the exact methods.
        method: How the tangents came about.
        over: Whose contexts H̄ is over.
    """

    values: Tensor
    log_probs: Tensor
    entropy: Tensor
    centered_discriminant: Tensor
    coefficients: Tensor
    count: int
    total: float
    check: float
    error: float
    method: str
    over: str

    @property
    def tabular(self) -> Tensor:
        """−S_c,t/n: what D_t is where positions share no parameters."""
        return -self.centered_discriminant / self.count


def token_influence(
    model: nn.Module,
    batch: StepBatch,
    *,
    over: Contexts = "same",
    preconditioner: Preconditioner | None = None,
    method: Method = "auto",
    check: Check = "sample",
) -> Influence:
    """Compute the influence D_t of every token of a step on the mean entropy of the step's contexts.

    Args:
        model: A causal language model, or any module that maps ``input_ids`` and ``attention_mask`` to an object with
            ``.logits``. What requires a gradient counts as trained (adapters alone, for a model with adapters). It is
            measured in evaluation mode and in float32 or wider, and left as it was.
        batch: The tokens with their coefficients g.
        over: "same": H̄ is over the contexts of all valid tokens. "crossed": each half of the prompt groups is
            measured on the other half's contexts. Only then is E[D_t] zero: on its own sequences ∇H̄ depends on the
            sampled token.
        preconditioner: P, symmetric: a factor >= 0 for each weight by name (Adam's 1/(√v̂ + ε); other names are not
            read), or a function from directions to directions; default: the identity, plain SGD.
        method: "jvp", a forward-mode pass, exact; "difference", two forwards at θ ± hv, for models without a
            forward-mode derivative; "output", through the output matrix alone, in closed form from the hidden states;
            "auto": "jvp", or "difference" where the model has no forward-mode derivative.
        check: The rows whose Σ g D/n is compared with ⟨∇J, P ∇H̄⟩, at the price of a forward and a backward over them:
            "sample", every 16th and at least four; "all"; "none". "output" compares all, without a backward.

    Returns:
        The influences.

    Raises:
        ValueError: No token is valid, nothing trains, the preconditioner does not fit, a number is not finite,
            "crossed" has fewer than two groups, or the method cannot be used on this model.

    Example:
        >>> from types import SimpleNamespace
        >>> class Table(nn.Module):  # a policy whose positions share nothing but the logits after equal tokens
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.logits_after = nn.Parameter(torch.tensor([[0.0, 1.0, 2.0]] * 3))
        ...     def forward(self, input_ids, attention_mask):
        ...         return SimpleNamespace(logits=self.logits_after[input_ids])
        >>> prompt, completion = torch.tensor([[0]]), torch.tensor([[2]])
        >>> ones = torch.ones(1, 1, dtype=torch.long)
        >>> step = StepBatch(prompt, ones, completion, ones, torch.ones(1), torch.zeros(1, dtype=torch.long))
        >>> influence = token_influence(Table(), step)
        >>> bool((influence.values - influence.tabular).abs().max() < 1e-6)
        True
    """
    if check not in get_args(Check):
        raise invalid("check", " or ".join(map(repr, get_args(Check))), repr(check))
    measured, used, checked, product = _measure(model, batch, over, preconditioner, method, check)
    valid, count = batch.valid, int(batch.valid.sum())
    coefficients = torch.where(valid, batch.advantages.to(measured.influence), 0.0)
    effects = coefficients.double() * measured.influence.double() / count
    total, part = float(effects.sum()), float(effects[checked].sum())
    gap = abs(part - product) / abs(product) if product else abs(part)
    return Influence(
        values=measured.influence,
        log_probs=measured.statistics.log_probs,
        entropy=measured.statistics.entropy,
        centered_discriminant=measured.statistics.centered_discriminant,
        coefficients=coefficients,
        count=count,
        total=total,
        check=gap if len(checked) else float("nan"),
        error=measured.error,
        method=used,
        over=over,
    )


def tangent_statistics(
    model: nn.Module,
    batch: StepBatch,
    *,
    over: Contexts = "same",
    preconditioner: Preconditioner | None = None,
    method: Method = "auto",
) -> TokenStatistics:
    """Compute S and N with −n u in place of S, so that rules and the lens can run on influence.

    With u_t = J_t P ∇H̄, the tangent of a position's logits:

        S_u = −n (u_y − mean_i u_i)    N_u = −n (E_p[u] − mean_i u_i)    S_u − N_u = −n D

    u has no level of its own, as logits have none; the mean over the vocabulary is taken out, which S has not, either:
    Σ_i S_i = 0. Where positions share no parameters, these are S, N and S_c.

    Args:
        model: As for `token_influence`, like the other arguments.
        batch: Likewise.
        over: Likewise.
        preconditioner: Likewise.
        method: Likewise.

    Returns:
        ``log_probs`` and ``entropy`` of the policy and the tangents' ``discriminant``, ``baseline`` and
        ``centered_discriminant``, (B, T), zero at invalid positions; for `TokenBatch.from_statistics`.

    Raises:
        ValueError: As `token_influence`.
    """
    measured, *_ = _measure(model, batch, over, preconditioner, method, "none")
    n = int(batch.valid.sum())
    columns = {
        "log_probs": measured.statistics.log_probs,
        "entropy": measured.statistics.entropy,
        "discriminant": -n * (measured.influence + measured.level),
        "baseline": -n * measured.level,
        "centered_discriminant": -n * measured.influence,
    }
    return statistics_of(columns, measured.statistics.impl)


def _measure(
    model: nn.Module,
    batch: StepBatch,
    over: str,
    preconditioner: Preconditioner | None,
    method: str,
    check: str,
) -> tuple[Tangents, str, Tensor, float]:
    """The tangents of all valid tokens, the method, the checked rows by number, and their ⟨∇J, P ∇H̄⟩."""
    for name, value, values in (("over", over, get_args(Contexts)), ("method", method, get_args(Method))):
        if value not in values:
            raise invalid(name, " or ".join(map(repr, values)), repr(value))
    with observed(model, forward_mode=method in ("auto", "jvp")):
        view = ModelView(model, batch)
        halves = _halves(batch, over)
        precondition = _preconditioner(preconditioner, view)
        coefficients = torch.where(view.mask, batch.advantages.to(view.dtype), 0.0) / view.count
        rows = view.mask.any(-1).nonzero()[:, 0]
        with full_precision(view.dtype):
            if method == "output":
                measured, product = through_output_matrix(view, halves, coefficients, precondition)
                return measured, "output", rows, product
            directions = []
            for mine, contexts in halves:
                slope, _ = view.gradient(entropy=contexts.to(coefficients) / int(contexts.sum()))
                directions.append((mine.any(-1).nonzero()[:, 0], precondition(slope)))
            checked = {"all": rows, "none": rows[:0], "sample": rows[:: max(1, min(16, len(rows) // 4))]}[check]
            product = 0.0
            for mine, v in directions:
                both = mine[torch.isin(mine, checked)]
                if len(both):
                    product += inner_product(v, view.gradient(log_probs=coefficients, rows=both)[0])
            if method != "auto":
                return tangents(view, directions, method), method, checked, product
            try:
                return tangents(view, directions, "jvp"), "jvp", checked, product
            except NoForwardModeError:
                return tangents(view, directions, "difference"), "difference", checked, product


def _halves(batch: StepBatch, over: str) -> list[tuple[Tensor, Tensor]]:
    """Masks (B, T) of whose influence is meant, on the mean entropy of which tokens' contexts."""
    valid = batch.valid
    if over == "same":
        return [(valid, valid)]
    judged = batch.group_ids[valid.any(-1)]
    number = torch.searchsorted(judged.unique(), batch.group_ids.clamp(max=int(judged.max()) if len(judged) else 0))
    first = (number % 2 == 0)[:, None] & valid
    second = valid & ~first
    if not (bool(first.any()) and bool(second.any())):
        raise invalid("over", "'same' for a batch of one prompt group", "'crossed'")
    return [(first, second), (second, first)]


def _preconditioner(given: Preconditioner | None, view: ModelView) -> Callable[[Parameters], Parameters]:
    """Check P, and make a function of it."""
    if given is None:
        return lambda direction: direction
    if callable(given):
        function = given
    else:
        factors = _factors(given, view)

        def function(direction: Parameters) -> Parameters:
            return {name: factors[name] * value for name, value in direction.items()}

    def checked(direction: Parameters) -> Parameters:
        result = function(copy.copy(direction))
        for name, value in direction.items():
            moved = result.get(name) if isinstance(result, Mapping) else None
            if not isinstance(moved, Tensor) or moved.shape != value.shape:
                received = tuple(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
                raise invalid("preconditioner", f"shape {tuple(value.shape)} for {name}", received)
            if not bool(torch.isfinite(moved).all()):
                raise invalid("preconditioner", f"finite numbers for {name}", "NaN or infinity")
        return {name: result[name].to(value) for name, value in direction.items()}

    return checked


def _factors(given: Mapping[str, Tensor], view: ModelView) -> dict[str, Tensor]:
    missing = [name for name in view.start if name not in given]
    if missing:
        raise invalid("preconditioner", f"a factor for each weight that trains, such as {missing[0]}", "none for it")
    for name, value in view.start.items():
        factor: Any = given[name]
        if not isinstance(factor, Tensor) or factor.shape != value.shape:
            shape = tuple(factor.shape) if isinstance(factor, Tensor) else type(factor).__name__
            raise invalid("preconditioner", f"shape {tuple(value.shape)} for {name}", shape)
        if factor.is_complex() or factor.is_meta:
            raise invalid(
                "preconditioner", f"real numbers for {name}", "a meta tensor" if factor.is_meta else factor.dtype
            )
        if bool((factor < 0).any()):
            raise invalid("preconditioner", f"factors >= 0 for {name}", float(factor.min()))
    return {name: given[name].detach().to(value) for name, value in view.start.items()}
