"""Influence through the output matrix alone, in closed form from the hidden states: no backward, tile by tile.

With logits z = W h and H̄ = (1/n) Σ_s h_s, the gradient is ∂H̄/∂W = −(1/(nT)) Σ_s S^s h_sᵀ. A position's logits move by
u = (1/T) V h_t for V = P ∂H̄/∂W, and D_t = u_y − E_p[u] (part E of the theory notes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from entropy_theory.errors import invalid
from entropy_theory.influence.model_view import ModelView
from entropy_theory.influence.tangents import Tangents, statistics_of
from entropy_theory.vocab import token_statistics
from entropy_theory.vocab.model_head import OutputLayer, positions_within_budget
from entropy_theory.vocab.statistics import FIELDS


def output_name(view: ModelView) -> str:
    """Name the output matrix among what trains.

    Raises:
        ValueError: The logits are not one product with it, or it does not train.
    """
    base = view.base
    layer, inputs = OutputLayer(base), {"input_ids": view.ids[:1], "attention_mask": view.attention[:1]}
    obstacle = layer.obstacle(lambda: base(**inputs).logits)
    if obstacle or layer.softcap is not None:
        raise invalid("method", "'jvp'", f"'output': {obstacle or 'the logits have a soft cap'}")
    weight = base.get_output_embeddings().weight
    names = [name for name, parameter in view.model.named_parameters() if parameter is weight and name in view.start]
    if not names:
        raise invalid("method", "'jvp'", "'output', but the output matrix does not require a gradient")
    return names[0]


@torch.no_grad()
def through_output_matrix(
    view: ModelView,
    halves: list[tuple[Tensor, Tensor]],
    coefficients: Tensor,
    precondition: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> tuple[Tangents, float]:
    """Compute the influence of each valid token through the output matrix.

    Args:
        view: The batch and the model.
        halves: Pairs of (B, T) masks: whose influence, on the mean entropy of which contexts.
        coefficients: g/n, (B, T).
        precondition: Maps {name: ∂H̄/∂W} to {name: P ∂H̄/∂W}.

    Returns:
        The tangents, and Σ over the halves of ⟨∂J/∂W, P ∂H̄/∂W⟩.
    """
    name = output_name(view)
    layer, T = OutputLayer(view.base), view.batch.temperature
    states = []
    for rows in view.blocks():
        with layer.watch() as seen:
            view.logits(view.start, rows)
        states.append(seen[0][:, -view.length - 1 : -1][view.mask[rows]].to(view.dtype))
    h, matrix, tokens = torch.cat(states), view.start[name], view.batch.completion_ids[view.mask]
    bias = view.base.get_output_embeddings().bias
    bias = None if bias is None else bias.detach().to(view.dtype)
    places = torch.arange(len(h), device=h.device).split(positions_within_budget(len(matrix)))

    def tempered(tile: Tensor) -> Tensor:
        return torch.nn.functional.linear(tile, matrix, bias) / T

    c = coefficients[view.mask].to(view.dtype)
    influence, level = torch.zeros_like(h[:, 0]), torch.zeros_like(h[:, 0])
    product = 0.0
    fields: dict[str, list[Tensor]] = {field: [] for field in FIELDS}
    for number, (mine, measured) in enumerate(halves):
        share = measured[view.mask].to(h) / (int(measured.sum()) * T)
        gradient, ascent = torch.zeros_like(matrix), torch.zeros_like(matrix)
        for place in places:
            tile = h[place]
            logits = tempered(tile)
            log_p = logits.log_softmax(-1)
            p = log_p.exp()
            H = -(p * torch.where(p > 0, log_p, 0.0)).sum(-1, keepdim=True)
            S = torch.where(p > 0, p * (H + log_p), 0.0)
            gradient -= (S * share[place, None]).T @ tile
            g = torch.where(mine[view.mask][place], c[place], 0.0) / T
            step = -g[:, None] * p
            step[torch.arange(len(tile), device=p.device), tokens[place]] += g
            ascent += step.T @ tile
            if not number:
                statistics = token_statistics(logits, tokens[place])
                for field in FIELDS:
                    fields[field].append(getattr(statistics, field))
        v = precondition({name: gradient})[name]
        product += float((ascent * v).sum(dtype=torch.float64))
        for place in places:
            tile, own = h[place], mine[view.mask][place]
            u = tile @ v.T / T
            p = tempered(tile).softmax(-1)
            expected = (p * u).sum(-1)
            influence[place] = torch.where(own, u.gather(-1, tokens[place, None])[:, 0] - expected, influence[place])
            level[place] = torch.where(own, expected - u.mean(-1), level[place])

    def spread(values: Tensor) -> Tensor:
        whole = values.new_zeros(view.mask.shape)
        whole[view.mask] = values
        return whole

    whole = {field: spread(torch.cat(values)) for field, values in fields.items()}
    return Tangents(statistics_of(whole, statistics.impl), spread(influence), spread(level), 0.0), product
