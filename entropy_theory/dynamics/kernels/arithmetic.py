"""The arithmetic of the compiled loops: random numbers, exponentials of tiles, and their sums.

A tile is a part of a policy's logits that stays in the first-level cache with its weights e^d, d = z − max z. Loops
over a tile have no branch, so they vectorise. Sums over a tile run in lanes; tiles are added in order. So a sum
depends on the policy alone.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from entropy_theory.vocab.kernels.compiled import LANES, cast, exp, polynomial

TILE = 256
"""Logits in a tile: the 16 tiles that a group of 16 hits in a vocabulary of 151,936 are 3 % of it."""

CHAINS = 8
CHAIN = TILE // CHAINS
"""Running sums of a tile advance in parts side by side: one alone would wait four cycles for each of its additions."""

HALF_CHAIN = CHAIN // 2
"""Parts up to this length, of tiles of up to 128 logits, are searched in four steps instead of five."""

LOG2E, LOG2E_REST = 1.4426950408889634, 2.0355273740931033e-17
LOWEST = -1021.5 / LOG2E
"""d below which e^d leaves the normal numbers and counts as 0."""

_LN2, _LN2_REST = 0.6931471805599453, 2.3190468138462996e-17
_INVERSE_FACTORIALS = tuple(1.0 / math.factorial(n) for n in range(14, 1, -1))
"""Of (e^r − 1 − r)/r² on |r| ≤ ½ log 2, highest power first: the first term left out is 1e-18 of the result."""

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF, _SPARE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(11)

# Below, ``no_type_check`` keeps run-time type checkers out of functions that Numba compiles.


@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Mix a counter of four words with a key of two by Philox4x32-10; see `draws.philox`. All words are uint64."""
    for _ in range(10):
        first, second = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (second >> _HALF) ^ c1 ^ k0, second & _LOW, (first >> _HALF) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def fill_uniforms(seed: int, purpose: int, step: int, policy: int, out: Any) -> None:
    """Fill `out` with the numbers of `draws.policy_uniforms` for one policy."""
    k0, k1 = np.uint64(seed), np.uint64(purpose)
    c1, c2, zero = np.uint64(policy), np.uint64(step), np.uint64(0)
    for block in range((out.size + 1) // 2):
        w0, w1, w2, w3 = philox(np.uint64(block), c1, c2, zero, k0, k1)
        out[2 * block] = np.float64(((w0 << _HALF) | w1) >> _SPARE) * 2.0**-53
        if 2 * block + 1 < out.size:
            out[2 * block + 1] = np.float64(((w2 << _HALF) | w3) >> _SPARE) * 2.0**-53


@intrinsic
def expm1(typing_context: Any, x: Any) -> Any:
    """Compute e^x − 1 for float64 |x| ≤ 700, without a branch; anything for other x.

    With x = k log 2 + r: 2^k (e^r − 1) + (2^k − 1), where k is 0 for |x| < ½ log 2, so that small x keep their digits.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        real, word = ir.DoubleType(), ir.IntType(64)

        def constant(number: float) -> Any:
            return ir.Constant(real, number)

        # Adding 1.5·2^52 rounds to an integer and leaves that integer in the low bits.
        rounder = constant(1.5 * 2.0**52)
        shifted = builder.fma(x, constant(LOG2E), rounder)
        whole = builder.fsub(shifted, rounder)
        rest = builder.fma(whole, constant(-_LN2_REST), builder.fma(whole, constant(-_LN2), x))
        grown = builder.fma(builder.fmul(rest, rest), polynomial(builder, rest, _INVERSE_FACTORIALS), rest)
        exponent = builder.shl(builder.bitcast(shifted, word), ir.Constant(word, 52))
        scale = builder.bitcast(builder.add(builder.bitcast(constant(1.0), word), exponent), real)
        return builder.fma(grown, scale, builder.fsub(scale, constant(1.0)))

    return types.float64(types.float64), generate


# A NaN among the numbers may or may not come out; the sums that follow see it in any case.
@njit(nogil=True, error_model="numpy", forceinline=True, fastmath={"nnan", "nsz"})
@no_type_check
def highest(z: Any) -> float:
    """Find the largest number of a row."""
    best = z[0]
    for i in range(z.size):
        best = z[i] if z[i] > best else best
    return best


@njit(nogil=True, error_model="numpy", forceinline=True, fastmath=LANES)
@no_type_check
def tile_sums(z: Any, top: float, weights: Any) -> Any:
    """Write e^d of a tile and sum e^d, e^d d, e^{2d} and e^{2d} d without its maxima, which are counted.

    A NaN or an infinity makes the second sum NaN.
    """
    rest, first, p2, q2, maxima = 0.0, 0.0, 0.0, 0.0, 0
    for i in range(z.size):
        x = np.float64(z[i]) - top
        e = exp(x if x > LOWEST else LOWEST, LOG2E, LOG2E_REST)
        e = 0.0 if x <= LOWEST else e
        weights[i] = e
        maxima += x == 0.0
        e = 0.0 if x == 0.0 else e
        square = e * e
        rest += e
        first += e * x
        p2 += square
        q2 += square * x
    return rest, first, p2, q2, maxima


@njit(nogil=True, error_model="numpy", forceinline=True, fastmath=LANES)
@no_type_check
def sum_squares(values: Any) -> float:
    """Sum the squares of some numbers."""
    result = 0.0
    for i in range(values.size):
        result += values[i] * values[i]
    return result


@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def running_sums(weights: Any, size: int, sums: Any, starts: Any) -> int:
    """Add up the weights of a tile of `size` logits from the left, in CHAINS parts of equal length.

    Args:
        weights: The weights, (TILE,).
        size: How many there are.
        sums: Gets the sums within each part, CHAIN apart, each followed by infinities as `first_above` needs, (TILE,).
        starts: Gets the sum before each part, (CHAINS,) or longer.

    Returns:
        The length of a part.
    """
    length = (size + CHAINS - 1) // CHAINS
    for i in range(size, CHAINS * length):
        weights[i] = 0.0
    searched = HALF_CHAIN if length <= HALF_CHAIN else CHAIN
    for part in range(CHAINS):
        for i in range(part * CHAIN + length, part * CHAIN + searched):
            sums[i] = np.inf
    s0, s1, s2, s3, s4, s5, s6, s7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(length):
        s0 += weights[i]
        s1 += weights[length + i]
        s2 += weights[2 * length + i]
        s3 += weights[3 * length + i]
        s4 += weights[4 * length + i]
        s5 += weights[5 * length + i]
        s6 += weights[6 * length + i]
        s7 += weights[7 * length + i]
        sums[i] = s0
        sums[CHAIN + i] = s1
        sums[2 * CHAIN + i] = s2
        sums[3 * CHAIN + i] = s3
        sums[4 * CHAIN + i] = s4
        sums[5 * CHAIN + i] = s5
        sums[6 * CHAIN + i] = s6
        sums[7 * CHAIN + i] = s7
    starts[0] = 0.0
    starts[1] = s0
    starts[2] = starts[1] + s1
    starts[3] = starts[2] + s2
    starts[4] = starts[3] + s3
    starts[5] = starts[4] + s4
    starts[6] = starts[5] + s5
    starts[7] = starts[6] + s6
    return length


@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def parts_of(targets: Any, starts: Any, parts: Any) -> None:
    """Write which part of a tile's running sums each target falls into."""
    b1, b2, b3, b4, b5, b6, b7 = starts[1], starts[2], starts[3], starts[4], starts[5], starts[6], starts[7]
    for j in range(targets.size):
        t = targets[j]
        low = np.int64(b1 <= t) + np.int64(b2 <= t) + np.int64(b3 <= t)
        parts[j] = low + np.int64(b4 <= t) + np.int64(b5 <= t) + np.int64(b6 <= t) + np.int64(b7 <= t)


@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def _passed(sums: Any, place: int, count: int, target: float) -> int:
    """Give `count` where so many sums from a place on are up to the target, or 0.

    Unsigned, here and in `first_above`: an index that may be negative costs a comparison and a move at each access.
    """
    return count if sums[place + count - np.uint64(1)] <= target else np.uint64(0)


@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def first_above(sums: Any, starts: Any, part: int, length: int, weights: Any, target: float) -> int:
    """Find the first logit of a tile whose running sum is above the target: a binary search in the target's part.

    Written out, since the steps of a loop become jumps that nobody predicts. A logit without weight is not an answer:
    where rounding carries the target past the end of its part, the last one with weight is.
    """
    target -= starts[part]
    start = np.uint64(part * CHAIN)
    place = start
    if length > HALF_CHAIN:
        place += _passed(sums, place, np.uint64(16), target)
    place += _passed(sums, place, np.uint64(8), target)
    place += _passed(sums, place, np.uint64(4), target)
    place += _passed(sums, place, np.uint64(2), target)
    place += _passed(sums, place, np.uint64(1), target)
    place = np.uint64(part * length) + min(place - start, np.uint64(length - 1))
    while weights[place] == 0.0 and place > np.uint64(0):
        place -= np.uint64(1)
    return np.int64(place)


@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def count_up_to(sums: Any, target: float) -> int:
    """Count how many sums are at most the target."""
    count = 0
    for i in range(sums.size):
        count += sums[i] <= target
    return count


@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def first_equal(z: Any, top: float) -> int:
    """Find the first number that equals the largest; looking at all of them costs less than to stop at it."""
    place = z.size
    for i in range(z.size):
        here = i if z[i] == top else z.size
        place = here if here < place else place
    return place


# Not in lanes: reordered to z − (max z + E_p[d]), u would lose the digits that a large max z has not.
@njit(nogil=True, error_model="numpy", forceinline=True, fastmath={"contract"})
@no_type_check
def look_up(z: Any, tokens: Any, top: float, total: float, mean: float, probs: Any, excess: Any) -> None:
    """Write p = e^d/Z and u = d − E_p[d] of sampled tokens."""
    inverse = 1.0 / total
    for j in range(tokens.size):
        x = np.float64(z[tokens[j]]) - top
        excess[j] = x - mean
        e = exp(x if x > LOWEST else LOWEST, LOG2E, LOG2E_REST)
        probs[j] = 0.0 if x <= LOWEST else e * inverse


@njit(nogil=True, error_model="numpy", forceinline=True, fastmath={"contract"})
@no_type_check
def tile_moves(
    z: Any, top: float, total: float, mean: float, gradient: float, bonus: float, probs: Any, excess: Any, moves: Any
) -> None:
    """Write p and u of a tile and the dense part of its move, −p (Σ_j s g_j + s c u)."""
    inverse = 1.0 / total
    for i in range(z.size):
        x = np.float64(z[i]) - top
        e = exp(x if x > LOWEST else LOWEST, LOG2E, LOG2E_REST)
        p = 0.0 if x <= LOWEST else e * inverse
        u = x - mean
        probs[i] = p
        excess[i] = u
        moves[i] = -p * (gradient + bonus * u)


# Not in lanes either: the logits must leave the difference before anything small is added to it.
@njit(nogil=True, error_model="numpy", forceinline=True)
@no_type_check
def take_moves(z: Any, moves: Any, shift: float) -> None:
    """Move the logits of a tile, and put the moves as they were stored, plus `shift`, in the place of the moves."""
    wide = z.itemsize == 8
    for i in range(z.size):
        before = np.float64(z[i])
        after = cast(before + moves[i], z[i])
        z[i] = after
        moves[i] = (moves[i] if wide else np.float64(after) - before) + shift


@njit(nogil=True, error_model="numpy", forceinline=True, fastmath=LANES)
@no_type_check
def weighted_sums(probs: Any, excess: Any, deltas: Any, shift: float, grown: float, lifted: float, far: float) -> Any:
    """Sum what the change of entropy needs (`bank.entropy_orders`), in one pass with an exponential.

    With E = e^δ − 1, δ measured from the likeliest token's, the sums over all tokens but that one are Σ p δ, Σ p δ u,
    Σ p δ², Σ p δ² u, Σ p E and Σ p E (u + δ). These are they with shift 0, and otherwise what the given tokens add to
    them when all others have δ = shift. Also how many |δ| exceed `far` or are NaN.

    Args:
        probs: p of the tokens; 0 for the likeliest.
        excess: u of the tokens.
        deltas: δ − shift, each token's own move; 0 where the token has none or is the likeliest.
        shift: Minus the move of the likeliest token, or 0 where `deltas` have it already.
        grown: e^shift − 1.
        lifted: e^shift.
        far: `bank.FAR`.
    """
    linear, slope, square, bent, growth, grown_slope, beyond = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0
    for j in range(deltas.size):
        delta, u, p = deltas[j], excess[j], probs[j]
        beyond += not (abs(delta + shift) <= far)
        first = p * delta
        second = first * (delta + 2.0 * shift)
        added = p * lifted * expm1(delta)
        linear += first
        slope += first * u
        square += second
        bent += second * u
        growth += added
        grown_slope += added * (u + shift + delta) + grown * first
    return linear, slope, square, bent, growth, grown_slope, beyond
