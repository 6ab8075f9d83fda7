"""One policy's step in Triton: statistics, samples, scores, the move and what it does to entropy.

`bank` and `grpo` say what is computed, and `kernels.policy` how it keeps its digits; all arithmetic is float64. A
program has a policy for itself. It reads the logits in blocks of TILES tiles of TILE logits each, and the sums of all
tiles, on which samples are sought, stay in registers. A tile is a power of two of logits.
"""

from __future__ import annotations

from typing import no_type_check

from entropy_theory.dynamics import bank
from entropy_theory.errors import missing_extra

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise missing_extra("triton", "gpu") from error

_FAR = tl.constexpr(bank.FAR)
_UNIFORM_UNIT = tl.constexpr(2.0**-53)
# e^d of it is zero in float64: it stands where there is no logit, and keeps 0 · −inf out of the sums.
_NO_LOGIT = tl.constexpr(-800.0)
_TERMS = tl.constexpr(18)  # the first term left out of e^h − 1, |h| ≤ 1, is 1/19! = 8e-18

# A literal that is assigned to a name becomes float32, so float64 starts from `tl.zeros`; in an expression it is exact.


@triton.jit
@no_type_check
def _log1p(x):
    """Compute log(1 + x): rounding 1 + x errs by as much in the logarithm as in the denominator, and it cancels."""
    near = 1.0 + x
    small = near == 1.0
    return tl.where(small, x, tl.log(near) * (x / tl.where(small, 1.0, near - 1.0)))


@triton.jit
@no_type_check
def _expm1(x):
    """Compute e^x − 1 for |x| ≤ 2, and anything for other x, whose move is far: E (2 + E), E = e^{x/2} − 1."""
    half = 0.5 * x
    series = half * 0.0 + 1.0
    for i in tl.static_range(_TERMS - 1):
        series = 1.0 + half * series * (1.0 / (_TERMS - i))
    grown = half * series
    return grown * (2.0 + grown)


@triton.jit
@no_type_check
def uniforms(key, step, policy, GROUP: tl.constexpr):
    """Give the numbers of `draws.policy_uniforms` for one policy; ``key`` is seed + 2^32 · purpose."""
    samples = tl.arange(0, GROUP)
    pairs = (samples // 2).to(tl.uint32)
    zero = pairs * 0
    w0, w1, w2, w3 = tl.philox(key, pairs, zero + policy.to(tl.uint32), zero + step.to(tl.uint32), zero)
    second = samples % 2 == 1
    high, low = tl.where(second, w2, w0).to(tl.uint64), tl.where(second, w3, w1).to(tl.uint64)
    return (((high << 32) | low) >> 11).to(tl.float64) * _UNIFORM_UNIT


@triton.jit
@no_type_check
def statistics(z, vocab_size, STEPS: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr):
    """Evaluate a policy in two reads of its logits, as `kernels.policy.statistics` does.

    The maximum comes first, so that no sum is ever rescaled; a small policy is then in the first-level cache and a bank
    of large ones in the second. One exponential per logit.

    Returns:
        max z, Z, E_p[d], H, N, 1 − p_top, the part of N from the other tokens, the likeliest token (of several, the
        first); Σ e^d of each tile, (STEPS, TILES); and e^d of the last block, (TILES, TILE). The entropy is NaN where a
        logit is not finite.
    """
    tokens = tl.arange(0, TILES)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    blocks = tl.cdiv(vocab_size, TILES * TILE)
    tops = tl.full([TILES, TILE], -float("inf"), z.dtype.element_ty)
    for block in range(0, blocks):
        here = block * (TILES * TILE) + tokens
        tops = tl.maximum(tops, tl.load(z + here, mask=here < vocab_size, other=-float("inf")))
    top = tl.max(tl.max(tops, 1), 0).to(tl.float64)

    rest = tl.zeros([TILES, TILE], tl.float64)
    first = tl.zeros([TILES, TILE], tl.float64)
    p2 = tl.zeros([TILES, TILE], tl.float64)
    q2 = tl.zeros([TILES, TILE], tl.float64)
    weights = tl.zeros([TILES, TILE], tl.float64)
    maxima = tl.zeros([TILES, TILE], tl.int32)
    places = tl.zeros([TILES, TILE], tl.int32) + vocab_size
    sums = tl.zeros([STEPS, TILES], tl.float64)
    rows = tl.arange(0, STEPS)[:, None]
    for block in range(0, blocks):
        here = block * (TILES * TILE) + tokens
        inside = here < vocab_size
        x = tl.load(z + here, mask=inside, other=0.0).to(tl.float64) - top
        x = tl.where(inside, x, _NO_LOGIT)
        weights = tl.exp(x)
        sums = tl.where(rows == block, tl.sum(weights, 1)[None, :], sums)
        highest = x == 0.0
        maxima += highest.to(tl.int32)
        places = tl.where(highest, tl.minimum(places, here), places)
        e = tl.where(highest, 0.0, weights)
        squared = e * e
        rest += e
        first += e * x
        p2 += squared
        q2 += squared * x
    others = (tl.sum(tl.sum(maxima, 1), 0) - 1).to(tl.float64)  # maxima beside the one that counts as the likeliest
    rest_sum = tl.sum(tl.sum(rest, 1), 0) + others
    total = 1.0 + rest_sum
    mean = tl.sum(tl.sum(first, 1), 0) / total
    scale = 1.0 / (total * total)
    tail_baseline = (tl.sum(tl.sum(q2, 1), 0) - mean * (tl.sum(tl.sum(p2, 1), 0) + others)) * scale
    entropy = _log1p(rest_sum) - mean
    baseline = tail_baseline - mean * scale
    likeliest = tl.minimum(tl.min(tl.min(places, 1), 0), vocab_size - 1)
    return top, total, mean, entropy, baseline, rest_sum / total, tail_baseline, likeliest, sums, weights


@triton.jit
@no_type_check
def _reach(weights, axis: tl.constexpr):
    """Give the running sums of weights, −inf where a place has none, so that none is found there."""
    return tl.where(weights > 0.0, tl.cumsum(weights, axis), -float("inf"))


@triton.jit
@no_type_check
def _first_above(reach, targets, SIZE: tl.constexpr):
    """Find in each row the first place whose running sum is above the target, or the last one with weight."""
    places = tl.arange(0, SIZE)[None, :]
    found = tl.min(tl.where(reach > targets[:, None], places, SIZE), 1)
    last = tl.max(tl.where(reach > 0.0, places, 0), 1)
    return tl.where(found < SIZE, found, last)


@triton.jit
@no_type_check
def sample(z, top, sums, weights, numbers, vocab_size, STEPS: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr):
    """Sample by inverting the cumulative distribution: first the tile, then the place in it; `bank.sample_tokens`.

    The tiles that samples fall into are read and evaluated once more, unless there is only one, whose e^d is at hand.
    """
    if STEPS * TILES == 1:
        heights = tl.reshape(weights, [TILE])
        return _first_above(_reach(heights, 0)[None, :], numbers * tl.sum(heights, 0), TILE)
    heights = tl.reshape(sums, [STEPS * TILES])
    reach = _reach(heights, 0)[None, :]
    targets = numbers * tl.sum(heights, 0)
    tiles = _first_above(reach, targets, STEPS * TILES)
    earlier = tl.arange(0, STEPS * TILES)[None, :] < tiles[:, None]
    targets -= tl.max(tl.where(earlier, tl.maximum(reach, 0.0), 0.0), 1)
    here = tiles[:, None] * TILE + tl.arange(0, TILE)[None, :]
    inside = here < vocab_size
    x = tl.load(z + here, mask=inside, other=0.0).to(tl.float64) - top
    e = tl.exp(tl.where(inside, x, _NO_LOGIT))
    return tiles * TILE + _first_above(_reach(e, 1), targets, TILE)


@triton.jit
@no_type_check
def look_up(z, tokens, inside, top, total, mean):
    """Give p = e^d/Z and u = d − E_p[d] of sampled tokens; 0 and 0 for a sample that is not `inside` the group."""
    x = tl.load(z + tokens, mask=inside, other=0.0).to(tl.float64) - top
    return tl.where(inside, tl.exp(x) / total, 0.0), tl.where(inside, x - mean, 0.0)


@triton.jit
@no_type_check
def advantages(right, group_size, DIVIDE: tl.constexpr, OFFSET: tl.constexpr):
    """Give the advantages of a right token and of a wrong one where `right` of a group are right.

    `control.group_advantages` for rewards 1 and 0, with OFFSET from there; a group of one kind has none.
    """
    ones, size = right.to(tl.float64), group_size.to(tl.float64)
    mean = ones / size
    above, below = 1.0 - mean, -mean
    if DIVIDE:
        squares = ones * above * above + (size - ones) * below * below
        sigma = tl.sqrt(squares / (size - 1.0)) + OFFSET
        above, below = above / sigma, below / sigma
    mixed = (right > 0) & (right < group_size)
    return tl.where(mixed, above, 0.0), tl.where(mixed, below, 0.0)


@triton.jit
@no_type_check
def discriminants(tokens, p, u, baseline, tail, tail_baseline, likeliest):
    """Give S and S_c of tokens; `bank.PolicyStatistics.at`."""
    S = p * u
    return S, tl.where(tokens == likeliest, S * tail - tail_baseline, S - baseline)


@triton.jit
@no_type_check
def sum_squares(z, top, total, mean, vocab_size, TILES: tl.constexpr, TILE: tl.constexpr):
    """Sum S² over a policy, in one read with an exponential; `bank.PolicyStatistics.sum_squared_discriminant`."""
    tokens = tl.arange(0, TILES)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    squares = tl.zeros([TILES, TILE], tl.float64)
    for block in range(0, tl.cdiv(vocab_size, TILES * TILE)):
        here = block * (TILES * TILE) + tokens
        inside = here < vocab_size
        x = tl.where(inside, tl.load(z + here, mask=inside, other=0.0).to(tl.float64) - top, _NO_LOGIT)
        S = tl.exp(x) / total * (x - mean)
        squares += S * S
    return tl.sum(tl.sum(squares, 1), 0)


@triton.jit
@no_type_check
def _moved(before, move, ELEMENT: tl.constexpr):
    """Give a logit after its move, and the move as it was stored."""
    after = (before + move).to(ELEMENT)
    if ELEMENT.primitive_bitwidth == 64:
        return after, move
    return after, after.to(tl.float64) - before


@triton.jit
@no_type_check
def _changes(linear, slope, bent, growth, grown_slope):
    """Turn the sums into ΔH and its first two orders; `bank.entropy_orders` has the formulas."""
    change = _log1p(growth) - linear - (grown_slope - growth * linear) / (1.0 + growth)
    return change, -slope, -0.5 * (bent - linear * linear - 2.0 * linear * slope)


@triton.jit
@no_type_check
def _in_group(tokens, scaled, inside, GROUP: tl.constexpr):
    """Give Σ s g_j of each sample's token, and whether the sample is the first of its token."""
    places = tl.arange(0, GROUP)
    same = tokens[:, None] == tokens[None, :]
    joint = tl.sum(tl.where(same & inside[None, :], scaled[None, :], 0.0), 1)
    earlier = same & (places[None, :] < places[:, None])
    return joint, inside & (tl.sum(earlier.to(tl.int32), 1) == 0)


@triton.jit
@no_type_check
def move_sampled(
    z, tokens, inside, scaled, likeliest, total, mean, tail, p, u, MEASURE: tl.constexpr, GROUP: tl.constexpr
):
    """Move the sampled tokens alone and measure the change of entropy, as `kernels.policy.move_sampled` does.

    No read of the logits but the sampled ones.

    Returns:
        ΔH, its first and second order, and how many moves are far: then ΔH is another, the difference of the entropies.
    """
    joint, fresh = _in_group(tokens, scaled, inside, GROUP)
    before = tl.load(z + tokens, mask=fresh, other=0.0).to(tl.float64)
    after, move = _moved(before, joint, z.dtype.element_ty)
    tl.debug_barrier()  # all threads have read what is now overwritten
    tl.store(z + tokens, after, mask=fresh)
    own = tokens == likeliest
    shift = -tl.sum(tl.where(fresh & own, move, 0.0), 0)
    if not MEASURE:
        return shift, shift, shift, 0
    delta = tl.where(fresh & ~own, move, 0.0)
    grown = _expm1(shift)
    first = p * delta
    bent = first * (delta + 2.0 * shift)
    added = p * (1.0 + grown) * _expm1(delta)
    grown_slope = added * (u + shift + delta) + grown * first
    weighted = mean / total  # Σ p u over all tokens but the likeliest
    change, first_order, second_order = _changes(
        shift * tail + tl.sum(first, 0),
        shift * weighted + tl.sum(first * u, 0),
        shift * shift * (tail + weighted) + tl.sum(bent * (1.0 + u), 0),
        grown * tail + tl.sum(added, 0),
        grown * (weighted + shift * tail) + tl.sum(grown_slope, 0),
    )
    # A sample that repeats a token has δ = shift here, as most tokens have: it counts for them.
    beyond = tl.sum((~(tl.abs(delta + shift) <= _FAR)).to(tl.int32), 0)
    return change, first_order, second_order, beyond


@triton.jit
@no_type_check
def move_all(
    z,
    tokens,
    inside,
    scaled,
    gradient,
    bonus,
    likeliest,
    top,
    total,
    mean,
    tail,
    p,
    u,
    vocab_size,
    MEASURE: tl.constexpr,
    GROUP: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Move every logit by `grpo.move_of_logits` and measure the change of entropy, as `kernels.policy.move_all` does.

    One read and one write of the logits, with e^d again and, if measured, e^δ − 1. The sampled tokens and the likeliest
    have moves of their own. They are computed first, for the group. −inf takes the place of their logits until the pass
    over all others is done, so that it need not look for them.

    Returns:
        As `move_sampled`.
    """
    joint, fresh = _in_group(tokens, scaled, inside, GROUP)
    own = tokens == likeliest
    mine = tl.sum(tl.where(inside & own, scaled, 0.0), 0)
    others = tl.sum(tl.where(inside & ~own, scaled, 0.0), 0)
    # Of the likeliest token: s g (1 − p) and −s g p, so that nothing cancels where p is nearly 1; its u is −E_p[d].
    top_after, top_move = _moved(top, mine * tail - (others - bonus * mean) / total, z.dtype.element_ty)
    fresh = fresh & ~own
    before = tl.load(z + tokens, mask=fresh, other=0.0).to(tl.float64)
    after, move = _moved(before, joint - p * (gradient + bonus * u), z.dtype.element_ty)
    delta = tl.where(fresh, move - top_move, 0.0)
    tl.debug_barrier()  # all threads have read what is now overwritten
    tl.store(z + tokens, -float("inf"), mask=fresh)
    tl.store(z + likeliest, -float("inf"))
    tl.debug_barrier()

    lanes = tl.arange(0, TILES)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    linear = tl.zeros([TILES, TILE], tl.float64)
    slope = tl.zeros([TILES, TILE], tl.float64)
    bent = tl.zeros([TILES, TILE], tl.float64)
    growth = tl.zeros([TILES, TILE], tl.float64)
    grown_slope = tl.zeros([TILES, TILE], tl.float64)
    beyond = tl.zeros([TILES, TILE], tl.int32)
    for block in range(0, tl.cdiv(vocab_size, TILES * TILE)):
        here = block * (TILES * TILE) + lanes
        logits = tl.load(z + here, mask=here < vocab_size, other=-float("inf")).to(tl.float64)
        plain = logits != -float("inf")
        logits = tl.where(plain, logits, top + _NO_LOGIT)
        x = logits - top
        probs, excess = tl.exp(x) / total, x - mean
        raised, step = _moved(logits, -probs * (gradient + bonus * excess), z.dtype.element_ty)
        tl.store(z + here, raised, mask=plain)
        if MEASURE:
            relative = tl.where(plain, step - top_move, 0.0)
            product = probs * relative
            added = probs * _expm1(relative)
            linear += product
            slope += product * excess
            bent += product * relative * (1.0 + excess)
            growth += added
            grown_slope += added * (excess + relative)
            beyond += (~(tl.abs(relative) <= _FAR)).to(tl.int32)
    tl.debug_barrier()
    tl.store(z + tokens, after, mask=fresh)
    tl.store(z + likeliest, top_after)
    if not MEASURE:
        return top_move, top_move, top_move, 0
    product = p * delta
    added = p * _expm1(delta)
    change, first_order, second_order = _changes(
        tl.sum(tl.sum(linear, 1), 0) + tl.sum(product, 0),
        tl.sum(tl.sum(slope, 1), 0) + tl.sum(product * u, 0),
        tl.sum(tl.sum(bent, 1), 0) + tl.sum(product * delta * (1.0 + u), 0),
        tl.sum(tl.sum(growth, 1), 0) + tl.sum(added, 0),
        tl.sum(tl.sum(grown_slope, 1), 0) + tl.sum(added * (u + delta), 0),
    )
    far = tl.sum(tl.sum(beyond, 1), 0) + tl.sum((~(tl.abs(delta) <= _FAR)).to(tl.int32), 0)
    return change, first_order, second_order, far
