"""One policy's step in compiled code: statistics, samples, scores, the move and what it does to entropy.

`bank` and `grpo` say what is computed; here is how, with as few passes over the logits as there can be.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import numpy as np
from numba import njit

from entropy_theory.dynamics.kernels import arithmetic as a
from entropy_theory.dynamics.kernels.arithmetic import TILE
from entropy_theory.dynamics.kernels.layout import BASELINE, ENTROPY, MEAN, TAIL, TAIL_BASELINE, TOP, TOTAL
from entropy_theory.vocab.kernels.compiled import cast

_compiled = njit(nogil=True, error_model="numpy", forceinline=True)


@_compiled
@no_type_check
def statistics(z: Any, weights: Any, sums: Any, state: Any) -> int:
    """Evaluate a policy; return its likeliest token (of several, the first).

    Section C of the theory notes, with the maxima left out of the sums: `bank.policy_statistics`. Two passes: one for
    the maximum, a tenth of the second's work, so that no sum is ever rescaled; one with an exponential.

    Args:
        z: The logits, (V,).
        weights: A tile's e^d; holds the last tile's afterwards.
        sums: Gets Σ e^d of each tile.
        state: Gets the statistics; NaN entropy where a logit is not finite.
    """
    top = np.float64(a.highest(z))
    rest, first, p2, q2, count, place = 0.0, 0.0, 0.0, 0.0, 0, -1
    for tile in range(sums.size):
        start, stop = tile * TILE, min(tile * TILE + TILE, z.size)
        t_rest, t_first, t_p2, t_q2, maxima = a.tile_sums(z[start:stop], top, weights)
        if maxima > 0 and place < 0:
            place = start + a.first_equal(z[start:stop], top)
        sums[tile] = t_rest + maxima
        rest += t_rest
        first += t_first
        p2 += t_p2
        q2 += t_q2
        count += maxima
    others = count - 1.0  # maxima beside the one that counts as the likeliest: e^d = 1, d = 0
    rest += others
    total = 1.0 + rest
    mean = first / total
    scale = 1.0 / (total * total)
    tail_baseline = (q2 - mean * (p2 + others)) * scale
    state[TOP], state[TOTAL], state[MEAN] = top, total, mean
    state[ENTROPY] = math.log1p(rest) - mean
    state[BASELINE] = tail_baseline - mean * scale
    state[TAIL] = rest / total
    state[TAIL_BASELINE] = tail_baseline
    return max(place, 0)


@_compiled
@no_type_check
def sample(
    z: Any,
    state: Any,
    uniforms: Any,
    weights: Any,
    sums: Any,
    running: Any,
    starts: Any,
    heads: Any,
    following: Any,
    tokens: Any,
    probs: Any,
    excess: Any,
) -> None:
    """Sample by inverting the cumulative distribution: first the tile, then the place in it; `bank.sample_tokens`.

    Only tiles that a sample falls into are evaluated again, and not the last one, whose weights are still there.

    Args:
        z: The logits, (V,).
        state: The statistics of the policy.
        uniforms: u, (G,); overwritten.
        weights: e^d of the last tile; overwritten.
        sums: Σ e^d of each tile; overwritten.
        running: Room for the running sums of a tile, (TILE,).
        starts: Room for the sums before their parts, (CHAINS,) or longer.
        heads: Room for the first sample of each tile's list.
        following: Room for the sample that follows another in its list, (G,).
        tokens: Gets the tokens, (G,).
        probs: Gets p of the tokens, (G,).
        excess: Gets u of the tokens, (G,).
    """
    tiles, top, inverse, mean, total = sums.size, state[TOP], 1.0 / state[TOTAL], state[MEAN], 0.0
    if tiles == 1:
        length = a.running_sums(weights, z.size, running, starts)
        for j in range(tokens.size):
            uniforms[j] *= sums[0]
        a.parts_of(uniforms, starts, tokens)
        for j in range(tokens.size):
            place = a.first_above(running, starts, tokens[j], length, weights, uniforms[j])
            tokens[j] = place
            probs[j] = weights[place] * inverse
            excess[j] = np.float64(z[place]) - top - mean
        return
    held, positive = tiles - 1, 0
    for tile in range(tiles):
        heads[tile] = -1
        if sums[tile] > 0.0:
            positive = tile
        total += sums[tile]
        sums[tile] = total
    for j in range(tokens.size):
        target = uniforms[j] * total
        tile = min(a.count_up_to(sums, target), positive)
        uniforms[j] = target - sums[tile - 1] if tile > 0 else target
        following[j] = heads[tile]
        heads[tile] = j
    for tile in range(tiles):
        j = heads[tile]
        if j < 0:
            continue
        start, size = tile * TILE, min(TILE, z.size - tile * TILE)
        if tile != held:
            a.tile_sums(z[start : start + size], top, weights)
            held = tile
        length = a.running_sums(weights, size, running, starts)
        while j >= 0:
            a.parts_of(uniforms[j : j + 1], starts, tokens[j : j + 1])
            place = a.first_above(running, starts, tokens[j], length, weights, uniforms[j])
            tokens[j] = start + place
            probs[j] = weights[place] * inverse
            excess[j] = np.float64(z[start + place]) - top - mean
            j = following[j]


@_compiled
@no_type_check
def advantages(right: int, group_size: int, divide: bool, offset: float) -> Any:
    """Give the advantages of a right token and of a wrong one where `right` of a group are right.

    `control.group_advantages` for rewards 1 and 0, with `offset` from there; a group of one kind has none.
    """
    if right == 0 or right == group_size:
        return 0.0, 0.0
    mean = right / group_size
    above, below = 1.0 - mean, -mean
    if divide:
        squares = right * above * above + (group_size - right) * below * below
        sigma = math.sqrt(squares / (group_size - 1)) + offset
        above, below = above / sigma, below / sigma
    return above, below


@_compiled
@no_type_check
def discriminants(token: int, likeliest: int, state: Any, p: float, u: float) -> Any:
    """Give S and S_c of a token from its p and u; `bank.PolicyStatistics.at`."""
    S = p * u
    return S, S * state[TAIL] - state[TAIL_BASELINE] if token == likeliest else S - state[BASELINE]


@njit(nogil=True, error_model="numpy", forceinline=True, fastmath=a.LANES)
@no_type_check
def group_sums(tokens: Any, hits: Any, likeliest: int, state: Any, probs: Any, excess: Any) -> Any:
    """Sum over a group R, S, S_c, and the numbers of tokens with S_c > 0 and < 0, of all and of those with R = 1."""
    rewards, total, total_centered, falls, rises, right_falls, right_rises = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(tokens.size):
        S, S_c = discriminants(tokens[j], likeliest, state, probs[j], excess[j])
        above, below = 1.0 if S_c > 0.0 else 0.0, 1.0 if S_c < 0.0 else 0.0
        rewards += hits[j]
        total += S
        total_centered += S_c
        falls += above
        rises += below
        right_falls += hits[j] * above
        right_rises += hits[j] * below
    return rewards, total, total_centered, falls, rises, right_falls, right_rises


@njit(nogil=True, error_model="numpy", forceinline=True, fastmath=a.LANES)
@no_type_check
def sum_deviations(probs: Any, excess: Any, mean: float) -> float:
    """Sum (S − mean)² over a group."""
    result = 0.0
    for j in range(probs.size):
        deviation = probs[j] * excess[j] - mean
        result += deviation * deviation
    return result


@_compiled
@no_type_check
def sum_squares(z: Any, state: Any, probs: Any, excess: Any, values: Any) -> float:
    """Sum S² over a policy, in one pass with an exponential; `bank.PolicyStatistics.sum_squared_discriminant`."""
    result = 0.0
    for start in range(0, z.size, TILE):
        part = z[start : min(start + TILE, z.size)]
        a.tile_moves(part, state[TOP], state[TOTAL], state[MEAN], 0.0, 1.0, probs, excess, values)  # −S
        result += a.sum_squares(values[: part.size])
    return result


@_compiled
@no_type_check
def _changes(
    linear: float, slope: float, square: float, bent: float, growth: float, grown_slope: float, out: Any
) -> None:
    """Turn the six sums into ΔH and its first two orders; `bank.entropy_orders` has the formulas."""
    out[0] = math.log1p(growth) - linear - (grown_slope - growth * linear) / (1.0 + growth)
    out[1] = -slope
    out[2] = -0.5 * (square + bent - linear * linear - 2.0 * linear * slope)


@_compiled
@no_type_check
def _difference(z: Any, entropy: float, weights: Any, sums: Any, room: Any, out: Any) -> None:
    """Put the difference of the entropies in the place of ΔH, where the move was far."""
    statistics(z, weights, sums, room)
    out[0] = room[ENTROPY] - entropy


@_compiled
@no_type_check
def move_sampled(
    z: Any,
    tokens: Any,
    pending: Any,
    likeliest: int,
    state: Any,
    probs: Any,
    excess: Any,
    deltas: Any,
    weights: Any,
    sums: Any,
    room: Any,
    far: float,
    measure: bool,
    out: Any,
) -> None:
    """Move the sampled tokens alone, by their Σ s g_j, and measure the change of entropy from their p and u.

    That is the whole move when Σ_j g_j = 0: no pass over the logits. All tokens but the sampled ones move by the same
    number relative to the likeliest, so their sums are those of the policy: Σ p = 1 − p_top and Σ p u = p_top E_p[d]
    over all but the likeliest, and what the sampled tokens add. Only a move that is far, where entropies are
    subtracted, reads the policy again.

    Args:
        z: The logits, (V,); moved.
        tokens: k, (G,).
        pending: Σ s g_j of each token, (V,), zero where no token was sampled; zero everywhere afterwards.
        likeliest: The likeliest token.
        state: The statistics of the policy before.
        probs: p of the tokens, (G,).
        excess: u of the tokens, (G,).
        deltas: Room, (G,).
        weights: Room for `statistics`.
        sums: Room for `statistics`.
        room: Room for the statistics after.
        far: `bank.FAR`.
        measure: Whether the change is asked for.
        out: Gets ΔH, first and second order.
    """
    wide = z.itemsize == 8
    shift = 0.0
    for j in range(tokens.size):
        k = tokens[j]
        move = pending[k]
        pending[k] = 0.0  # a repetition finds nothing left
        before = np.float64(z[k])
        after = cast(before + move, z[k])
        z[k] = after
        if not wide:
            move = np.float64(after) - before
        own = k == likeliest
        shift -= move if own else 0.0
        deltas[j] = 0.0 if own else move
    if not measure:
        return
    grown = a.expm1(shift)
    linear, slope, square, bent, growth, grown_slope, beyond = a.weighted_sums(
        probs, excess, deltas, shift, grown, 1.0 + grown, far
    )
    rest, weighted = state[TAIL], state[MEAN] / state[TOTAL]
    _changes(
        shift * rest + linear,
        shift * weighted + slope,
        shift * shift * rest + square,
        shift * shift * weighted + bent,
        grown * rest + growth,
        grown * (weighted + shift * rest) + grown_slope,
        out,
    )
    if beyond > 0 or not (abs(shift) <= far):
        _difference(z, state[ENTROPY], weights, sums, room, out)


@_compiled
@no_type_check
def move_all(
    z: Any,
    tokens: Any,
    scaled: Any,
    gradient: float,
    bonus: float,
    likeliest: int,
    state: Any,
    probs: Any,
    excess: Any,
    moves: Any,
    heads: Any,
    following: Any,
    sums: Any,
    room: Any,
    far: float,
    measure: bool,
    out: Any,
) -> None:
    """Move every logit by `grpo.move_of_logits` and measure the change of entropy.

    One pass over the logits: each tile is read, moved and written in the cache. It evaluates e^d again, which costs
    less than to keep p of every policy, and e^δ − 1.

    Args:
        z: The logits, (V,); moved.
        tokens: k, (G,).
        scaled: s g, (G,).
        gradient: Σ_j s g_j.
        bonus: s c, of the entropy terms.
        likeliest: The likeliest token.
        state: The statistics of the policy before.
        probs: Room for a tile.
        excess: Room for a tile.
        moves: Room for a tile.
        heads: Room for the first sample of each tile's list.
        following: Room for the sample that follows another in its list, (G,).
        sums: Room for `statistics`.
        room: Room for the statistics after.
        far: `bank.FAR`.
        measure: Whether the change is asked for.
        out: Gets ΔH, first and second order.
    """
    top, total, mean = state[TOP], state[TOTAL], state[MEAN]
    for tile in range(heads.size):
        heads[tile] = -1
    own, others = 0.0, 0.0
    for j in range(tokens.size):
        tile = tokens[j] // TILE
        following[j] = heads[tile]
        heads[tile] = j
        if tokens[j] == likeliest:
            own += scaled[j]
        else:
            others += scaled[j]
    # Of the likeliest token: s g (1 − p) and −s g p, so that nothing cancels where p is nearly 1; its u is −E_p[d].
    move = own * state[TAIL] - (others - bonus * mean) / total
    before = np.float64(z[likeliest])
    shift = -move if z.itemsize == 8 else before - np.float64(cast(before + move, z[likeliest]))
    linear, slope, square, bent, growth, grown_slope, beyond = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0
    for tile in range(heads.size):
        start, stop = tile * TILE, min(tile * TILE + TILE, z.size)
        part = z[start:stop]
        a.tile_moves(part, top, total, mean, gradient, bonus, probs, excess, moves)
        j = heads[tile]
        while j >= 0:
            moves[tokens[j] - start] += scaled[j]
            j = following[j]
        if start <= likeliest < stop:  # the very number that shift has, so that its own δ is 0
            moves[likeliest - start] = move
            probs[likeliest - start] = 0.0
        a.take_moves(part, moves, shift)
        if not measure:
            continue
        size = part.size
        t_linear, t_slope, t_square, t_bent, t_growth, t_grown_slope, t_beyond = a.weighted_sums(
            probs[:size], excess[:size], moves[:size], 0.0, 0.0, 1.0, far
        )
        linear += t_linear
        slope += t_slope
        square += t_square
        bent += t_bent
        growth += t_growth
        grown_slope += t_grown_slope
        beyond += t_beyond
    if measure:
        _changes(linear, slope, square, bent, growth, grown_slope, out)
        if beyond > 0:
            _difference(z, state[ENTROPY], probs, sums, room, out)
