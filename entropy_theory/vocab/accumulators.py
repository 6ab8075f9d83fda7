"""The few running sums per token from which every statistic follows, and how they are merged and finished.

Section C of the theory notes. Every implementation reads the logits in its own way and ends with these sums; what
follows from them is written once, here. With m = max z and d = (z − m)/T, over the tokens *below* the maximum:

    Z_r = Σ e^d    A = Σ e^d d    P₂ = Σ e^{2d}    Q₂ = Σ e^{2d} d
    D₂ = Σ e^{2d} d²    P₃ = Σ e^{3d}    Q₃ = Σ e^{3d} d

The exact maxima are counted (n) and left out, so that on a nearly deterministic row, where most tokens of a trained
model live, the sums hold the small part of the distribution alone and keep its digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Columns of the accumulators, (..., 6), or (..., 9) for the second order; float64.
TOP, COUNT, TOTAL, FIRST, P2, Q2, D2, P3, Q3 = range(9)


def columns(second_order: bool) -> int:
    """Return the number of columns that are needed."""
    return 9 if second_order else 6


def empty(rows: int, second_order: bool, device: torch.device | str = "cpu") -> Tensor:
    """Return the accumulators of rows of which nothing was read yet.

    Example:
        >>> empty(1, second_order=False)
        tensor([[-inf, 0., 0., 0., 0., 0.]], dtype=torch.float64)
    """
    sums = torch.zeros(rows, columns(second_order), dtype=torch.float64, device=device)
    sums[:, TOP] = -torch.inf
    return sums


def merge(parts: Tensor, temperature: float) -> Tensor:
    """Merge accumulators of disjoint parts of the vocabulary.

    Where the maximum moves by Δ (in units of d), with n counted as tokens of d = 0:
    Z → e^{−Δ} Z, A → e^{−Δ} (A − Δ Z), P₂ → e^{−2Δ} P₂, Q₂ → e^{−2Δ} (Q₂ − Δ P₂), and so on.

    Args:
        parts: Accumulators, shape (parts, rows, 6 or 9), float64.
        temperature: T.

    Returns:
        The accumulators of the whole, shape (rows, 6 or 9). A NaN maximum, which marks a row with a NaN or +inf logit,
        stays NaN.

    Example:
        >>> left, right = torch.tensor([[1.0, 1, 0, 0, 0, 0]]), torch.tensor([[0.0, 1, 0, 0, 0, 0]])
        >>> merge(torch.stack([left, right]).double(), temperature=1.0)[0, :4]
        tensor([ 1.0000,  1.0000,  0.3679, -0.3679], dtype=torch.float64)
    """
    own = parts[..., TOP]
    top = own.amax(0)
    moved = own < top  # False for NaN
    step = torch.where(moved & (own != -torch.inf), (top - own) / temperature, 0.0)
    w = torch.where(own == -torch.inf, 0.0, torch.exp(-step))
    step = torch.where(w > 0, step, 0.0)  # Δ may be infinite where the weight is zero
    n = torch.where(moved, parts[..., COUNT], 0.0)
    total, first = parts[..., TOTAL] + n, parts[..., FIRST]
    p2, q2 = parts[..., P2] + n, parts[..., Q2]
    new = [top, (parts[..., COUNT] - n).sum(0), (w * total).sum(0), (w * (first - step * total)).sum(0)]
    new += [(w**2 * p2).sum(0), (w**2 * (q2 - step * p2)).sum(0)]
    if parts.shape[-1] > 6:
        p3, q3 = parts[..., P3] + n, parts[..., Q3]
        new.append((w**2 * (parts[..., D2] - 2 * step * q2 + step**2 * p2)).sum(0))
        new += [(w**3 * p3).sum(0), (w**3 * (q3 - step * p3)).sum(0)]
    return torch.stack(new, dim=-1)


def token_distance(sums: Tensor, token_logits: Tensor, temperature: float) -> Tensor:
    """Return d_y = (z_y − max z)/T, float64; −inf for a token of probability zero."""
    top = sums[..., TOP]
    return (token_logits.double() - torch.where(top == -torch.inf, 0.0, top)) / temperature


def finish(sums: Tensor, token_logits: Tensor, temperature: float, second_order: bool) -> dict[str, Tensor | None]:
    """Turn accumulators into the fields of TokenStatistics.

        log Z = log n + log1p(Z_r/n)    a = A/Z    log p_y = d_y − log Z    H = log Z − a    S_y = p_y (d_y − a)
        N = (Q₂ − a P₂ − n a)/Z²    S_c = S_y − N, and S_y Z_r/Z − (Q₂ − a P₂)/Z² for a token among the maxima

    The last form avoids an O(1 − p) cancellation in an O((1 − p)²) answer.

    Args:
        sums: Accumulators, shape (rows, 6 or 9), float64.
        token_logits: z_y, shape (rows,).
        temperature: T.
        second_order: Also Σ S² and the curvature of the GRPO direction; needs nine columns.

    Returns:
        The fields by name, float64. Rows with a NaN maximum are NaN, rows without a finite logit are 0 and −inf.
    """
    top, n, total, first, p2, q2 = sums[..., :6].unbind(-1)
    n = torch.where(top.isnan(), torch.nan, n)  # a row that was given up holds only part of its sums
    dead = top == -torch.inf  # no finite logit: there is no policy to speak of
    d_y = token_distance(sums, token_logits, temperature)
    at_max = d_y == 0

    z_sum = n + total
    log_z = n.log() + torch.log1p(total / n)
    mean = first / z_sum  # a = E_p[d] ≤ 0
    p_y = (d_y - log_z).exp()
    s_y = torch.where(d_y == -torch.inf, 0.0, p_y * (d_y - mean))
    rest_baseline = (q2 - mean * p2) / z_sum**2
    baseline = rest_baseline - n * mean / z_sum**2
    out: dict[str, Tensor | None] = {
        "log_probs": d_y - log_z,
        "entropy": log_z - mean,
        "discriminant": s_y,
        "baseline": baseline,
        "centered_discriminant": torch.where(at_max, s_y * (total / z_sum) - rest_baseline, s_y - baseline),
        "sum_squared_discriminant": None,
        "grpo_curvature": None,
    }
    if second_order:
        d2, p3, q3 = sums[..., 6:].unbind(-1)
        out["sum_squared_discriminant"] = (n * mean**2 + d2 - 2 * mean * q2 + mean**2 * p2) / z_sum**2
        # The token itself is taken out of every power sum, so that δ_y and the rest are added, not subtracted.
        e_y = torch.where(at_max, 1.0, d_y.exp())
        below = torch.where(at_max, 0.0, 1.0)
        n_rest = n - torch.where(at_max, 1.0, 0.0)
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


def put_at_tokens(gradient: Tensor, tokens: Tensor, values: Tensor) -> None:
    """Write one value per row at its token, in place; gradient (..., V) contiguous, tokens and values (rows,)."""
    # scatter_ would widen the whole of a 16-bit gradient to float32 on the CPU.
    flat = gradient.view(-1, gradient.shape[-1])
    flat[torch.arange(flat.shape[0], device=flat.device), tokens] = values.to(flat.dtype)


def gradient_coefficients(
    sums: Tensor, token_logits: Tensor, temperature: float, log_prob_grad: Tensor | None, entropy_grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reduce the backward pass to two numbers per row and the value at the token.

    With g the gradient of the loss for log p_y and h that for H,

        ∂/∂z_i = [g (1{i = y} − p_i) − h S_i] / T = e^{d_i} (level + slope · x_i),    x = z − max z, for i ≠ y

    Args:
        sums: Accumulators, shape (rows, ≥ 6), float64.
        token_logits: z_y, shape (rows,).
        temperature: T.
        log_prob_grad: g, shape (rows,), or None for zero.
        entropy_grad: h, shape (rows,), or None for zero.

    Returns:
        max z (0 where no logit is finite), level, slope and the gradient at y itself, in which 1 − p_y is not a
        difference of two numbers near one; float64, shape (rows,) each.
    """
    top, n, total, first = sums[..., :4].unbind(-1)
    n = torch.where(top.isnan(), torch.nan, n)
    zero = torch.zeros_like(top)
    g = zero if log_prob_grad is None else log_prob_grad.double()
    h = zero if entropy_grad is None else entropy_grad.double()
    dead = top == -torch.inf
    d_y = token_distance(sums, token_logits, temperature)
    z_sum = n + total
    mean = first / z_sum
    log_prob = d_y - n.log() - torch.log1p(total / n)
    s_y = torch.where(d_y == -torch.inf, 0.0, log_prob.exp() * (d_y - mean))
    level = (h * mean - g) / (temperature * z_sum)
    slope = -h / (temperature**2 * z_sum)
    at_token = (-g * torch.expm1(log_prob) - h * s_y) / temperature
    level, slope, at_token = (torch.where(dead, 0.0, part) for part in (level, slope, at_token))
    return torch.where(dead, 0.0, top), level, slope, at_token
