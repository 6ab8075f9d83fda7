"""The readable reference: plain torch, one block of rows at a time.

Two choices keep the digits on nearly deterministic rows, where most tokens of a trained model live. The exact maxima
(d = 0) are left out of the running sums and counted instead, so the sums hold the small part of the distribution alone;
and S_c of a token among the maxima is assembled from that small part, because S_y and N agree there to all but their
last digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of logits handled at once: 16 MiB in float32, small beside any model, large enough to keep the cores busy.
BLOCK_ELEMENTS = 1 << 22


@torch.no_grad()
def compute(logits: Tensor, tokens: Tensor, temperature: float, second_order: bool) -> dict[str, Tensor | None]:
    """Compute the fields of TokenStatistics (see there) for validated input."""
    vocab_size = logits.shape[-1]
    flat = logits.reshape(-1, vocab_size)
    ids = tokens.reshape(-1, 1).long()
    rows = max(1, BLOCK_ELEMENTS // vocab_size)
    out_dtype = torch.promote_types(logits.dtype, torch.float32)
    starts = range(0, max(flat.shape[0], 1), rows)
    blocks = [_block(flat[i : i + rows], ids[i : i + rows], temperature, second_order) for i in starts]
    return {
        name: None
        if blocks[0][name] is None
        else torch.cat([block[name] for block in blocks]).to(out_dtype).reshape(tokens.shape)
        for name in blocks[0]
    }


def _block(logits: Tensor, ids: Tensor, temperature: float, second_order: bool) -> dict[str, Tensor]:
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = z.amax(dim=-1, keepdim=True)
    dead = top.squeeze(-1) == -torch.inf  # no finite logit: there is no policy to speak of
    d = (z - torch.where(top == -torch.inf, 0.0, top)).div_(temperature)
    d_y = d.gather(-1, ids).squeeze(-1).double()
    n_max = (d == 0).sum(-1).double()

    # Sums over the tokens below the maximum. e^d is set to zero at the maxima, d to zero at −inf (0 · −inf is NaN).
    weight = torch.where(d == 0, 0.0, d.exp())
    d = torch.where(d == -torch.inf, 0.0, d)
    total = _total(weight)  # Σ e^d
    first = _total(weight * d)  # Σ e^d d
    squared = weight * weight
    p2, q2 = _total(squared), _total(squared * d)  # Σ e^{2d}, Σ e^{2d} d

    z_sum = n_max + total
    log_z = n_max.log() + torch.log1p(total / n_max)
    mean = first / z_sum  # a = E_p[d] ≤ 0
    p_y = (d_y - log_z).exp()
    at_max = d_y == 0
    s_y = torch.where(d_y == -torch.inf, 0.0, p_y * (d_y - mean))
    rest_baseline = (q2 - mean * p2) / z_sum**2
    baseline = rest_baseline - n_max * mean / z_sum**2
    centered = torch.where(at_max, s_y * (total / z_sum) - rest_baseline, s_y - baseline)

    out: dict[str, Tensor] = {
        "log_probs": d_y - log_z,
        "entropy": log_z - mean,
        "discriminant": s_y,
        "baseline": baseline,
        "centered_discriminant": centered,
        "sum_squared_discriminant": None,  # type: ignore[dict-item]
        "grpo_curvature": None,  # type: ignore[dict-item]
    }
    if second_order:
        d2 = _total(squared * d * d)
        cubed = squared * weight
        p3, q3 = _total(cubed), _total(cubed * d)
        out["sum_squared_discriminant"] = (n_max * mean**2 + d2 - 2 * mean * q2 + mean**2 * p2) / z_sum**2
        # The token itself is taken out of every power sum, so that δ_y and the rest are added, not subtracted.
        e_y = torch.where(at_max, 1.0, d_y.exp())
        below = torch.where(at_max, 0.0, 1.0)
        n_rest = n_max - torch.where(at_max, 1.0, 0.0)
        finite_d = torch.where(d_y == -torch.inf, 0.0, d_y)

        def rest(power_sum: Tensor, power: int, with_d: bool) -> Tensor:
            own = below * e_y**power * (finite_d if with_d else 1.0)
            maxima = torch.zeros_like(n_rest) if with_d else n_rest
            return (maxima + power_sum - own) / z_sum**power

        rho, m2, m3 = rest(total, 1, False), rest(p2, 2, False), rest(p3, 3, False)
        u1, u2, u3 = rest(first, 1, True), rest(q2, 2, True), rest(q3, 3, True)
        c = m2 - p_y * rho  # −E_p of the direction e_y − p
        delta_y = rho**2 + m2  # the direction at y, centred; elsewhere it is c − p_i
        own_term = p_y * delta_y**2 * (1 + finite_d - mean)
        # Σ_{i≠y} p_i (c − p_i)² (1 + u_i) with u = d − a, expanded in the power sums of the rest.
        lin, quad, cube = rho + u1 - mean * rho, m2 + u2 - mean * m2, m3 + u3 - mean * m3
        out["grpo_curvature"] = -(own_term + c**2 * lin - 2 * c * quad + cube)

    for name, value in out.items():
        if value is not None:
            out[name] = torch.where(dead, -torch.inf if name == "log_probs" else 0.0, value)
    return out


def _total(x: Tensor) -> Tensor:
    return x.sum(-1, dtype=torch.float64)
