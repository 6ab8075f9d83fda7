"""A step of a bank of policies in Triton: one program per policy, which does all of its step while its logits are near.

A small policy stays in the first-level cache of its multiprocessor between the passes; of a bank of large ones as much
as the second level holds. The random numbers are those of the policy's place in the whole bank.

Passes over the V logits of a policy, and exponentials of all of them:

    read_kernel         2 reads: the maximum, and e^d with its sums; 1 exponential. Σ S² takes one more of each
    move_kernel         none where Σ_j g_j = 0; else 1 read and write; e^d again, and e^δ − 1 if measured
    step_kernel         those of `read_kernel`, and no other: without a rule Σ_j g_j = 0

Sampling reads the tiles that it falls into again, at most G tiles; a vocabulary of one tile, none. A move that is far
(`bank.FAR`) takes the 2 reads of the statistics again. A program has one multiprocessor, so a bank of fewer policies
than the device has multiprocessors does not fill it.
"""

from __future__ import annotations

from typing import no_type_check

from entropy_theory.dynamics.kernels import layout
from entropy_theory.dynamics.kernels import triton_policy as one
from entropy_theory.dynamics.kernels.triton_policy import tl, triton

_TOP, _TOTAL, _MEAN = tl.constexpr(layout.TOP), tl.constexpr(layout.TOTAL), tl.constexpr(layout.MEAN)
_ENTROPY, _BASELINE = tl.constexpr(layout.ENTROPY), tl.constexpr(layout.BASELINE)
_TAIL, _TAIL_BASELINE = tl.constexpr(layout.TAIL), tl.constexpr(layout.TAIL_BASELINE)
_MEAN_S, _MEAN_S_C = tl.constexpr(layout.MEAN_S), tl.constexpr(layout.MEAN_S_C)
_STATE, _EPSILON = tl.constexpr(layout.STATE), tl.constexpr(layout.EPSILON)


@triton.jit(do_not_specialize=["key", "step", "first"])
@no_type_check
def read_kernel(
    logits,
    correct,
    tokens,
    rewards,
    advantages,
    likeliest,
    states,
    probs,
    excess,
    log_probs,
    S,
    S_c,
    squares,
    key,
    step,
    first,
    vocab_size,
    group_size,
    DIVIDE: tl.constexpr,
    OFFSET: tl.constexpr,
    SAMPLE: tl.constexpr,
    SQUARES: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Evaluate a policy, sample a group of tokens from it, reward and score the tokens.

    Args:
        logits: z, (B, V), float64 or float32.
        correct: 1 where the reward is, (B, V), uint8.
        tokens: k, (B, G), int64; written, or read where nothing is sampled.
        rewards: Gets R, (B, G), if it samples.
        advantages: Gets A, (B, G), if it samples.
        likeliest: Gets the likeliest token, (B,), int32.
        states: Gets the statistics, (B, STATE); see `layout`.
        probs: Gets p of the tokens, (B, G).
        excess: Gets u = H + log p of the tokens, (B, G).
        log_probs: Gets log p, (B, G).
        S: Gets S, (B, G).
        S_c: Gets S_c, (B, G).
        squares: Gets Σ S², (B,), if it is asked for.
        key: Seed + 2^32 · purpose of the random numbers.
        step: Their step.
        first: The place of the first policy in the whole bank.
        vocab_size: V.
        group_size: G.
        DIVIDE: Whether advantages are divided by the deviation of their group.
        OFFSET: What `group_advantages` adds to it.
        SAMPLE: Whether it samples.
        SQUARES: Whether Σ S² is asked for.
        GROUP: The power of two from G.
        STEPS: The power of two from the blocks that hold V.
        TILES: Tiles in a block.
        TILE: Logits in a tile.
    """
    row = tl.program_id(0)
    z = logits + row.to(tl.int64) * vocab_size
    samples = tl.arange(0, GROUP)
    inside = samples < group_size
    places = row.to(tl.int64) * group_size + samples
    top, total, mean, entropy, baseline, tail, tail_baseline, mode, sums, weights = one.statistics(
        z, vocab_size, STEPS, TILES, TILE
    )
    if SAMPLE:
        numbers = one.uniforms(key, step, first + row, GROUP)
        k = one.sample(z, top, sums, weights, numbers, vocab_size, STEPS, TILES, TILE)
        k = tl.where(inside, k, -1)
        tl.store(tokens + places, k.to(tl.int64), mask=inside)
        right = tl.load(correct + row.to(tl.int64) * vocab_size + k, mask=inside, other=0).to(tl.int32)
        above, below = one.advantages(tl.sum(right, 0), group_size, DIVIDE, OFFSET)
        tl.store(rewards + places, right.to(tl.float64), mask=inside)
        tl.store(advantages + places, tl.where(right > 0, above, below), mask=inside)
    else:
        k = tl.load(tokens + places, mask=inside, other=-1).to(tl.int32)
    p, u = one.look_up(z, k, inside, top, total, mean)
    value, centered = one.discriminants(k, p, u, baseline, tail, tail_baseline, mode)
    tl.store(probs + places, p, mask=inside)
    tl.store(excess + places, u, mask=inside)
    tl.store(log_probs + places, u - entropy, mask=inside)
    tl.store(S + places, value, mask=inside)
    tl.store(S_c + places, centered, mask=inside)
    tl.store(likeliest + row, mode)
    state = states + row.to(tl.int64) * _STATE
    tl.store(state + _TOP, top)
    tl.store(state + _TOTAL, total)
    tl.store(state + _MEAN, mean)
    tl.store(state + _ENTROPY, entropy)
    tl.store(state + _BASELINE, baseline)
    tl.store(state + _TAIL, tail)
    tl.store(state + _TAIL_BASELINE, tail_baseline)
    tl.store(state + _MEAN_S, tl.sum(value, 0) / group_size)
    tl.store(state + _MEAN_S_C, tl.sum(tl.where(inside, centered, 0.0), 0) / group_size)
    if SQUARES:
        tl.store(squares + row, one.sum_squares(z, top, total, mean, vocab_size, TILES, TILE))


@triton.jit
@no_type_check
def move_kernel(
    logits,
    tokens,
    scaled,
    bonus,
    likeliest,
    states,
    probs,
    excess,
    changes,
    vocab_size,
    group_size,
    MEASURE: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Move a policy by the policy gradient and measure what that does to its entropy.

    Args:
        logits: z, (B, V); moved.
        tokens: k, (B, G), int64.
        scaled: s g, (B, G).
        bonus: s c of each policy's entropy terms, (B,).
        likeliest: What `read_kernel` wrote, (B,).
        states: What `read_kernel` wrote, (B, STATE).
        probs: What `read_kernel` wrote, (B, G).
        excess: What `read_kernel` wrote, (B, G).
        changes: Gets ΔH, first and second order, (3, B), if they are measured.
        vocab_size: V.
        group_size: G.
        MEASURE: Whether the changes are asked for.
        GROUP: As for `read_kernel`.
        STEPS: As for `read_kernel`.
        TILES: As for `read_kernel`.
        TILE: As for `read_kernel`.
    """
    row = tl.program_id(0)
    z = logits + row.to(tl.int64) * vocab_size
    samples = tl.arange(0, GROUP)
    inside = samples < group_size
    places = row.to(tl.int64) * group_size + samples
    k = tl.load(tokens + places, mask=inside, other=-1).to(tl.int32)
    g = tl.load(scaled + places, mask=inside, other=0.0)
    p = tl.load(probs + places, mask=inside, other=0.0)
    u = tl.load(excess + places, mask=inside, other=0.0)
    c, mode = tl.load(bonus + row), tl.load(likeliest + row)
    state = states + row.to(tl.int64) * _STATE
    top, total, mean = tl.load(state + _TOP), tl.load(state + _TOTAL), tl.load(state + _MEAN)
    tail = tl.load(state + _TAIL)
    gradient = tl.sum(g, 0)
    # Advantages sum to zero up to their rounding, which is no reason to move every logit.
    if (c == 0.0) & (tl.abs(gradient) <= group_size * _EPSILON * tl.sum(tl.abs(g), 0)):
        change, first, second, beyond = one.move_sampled(z, k, inside, g, mode, total, mean, tail, p, u, MEASURE, GROUP)
    else:
        change, first, second, beyond = one.move_all(
            z, k, inside, g, gradient, c, mode, top, total, mean, tail, p, u, vocab_size, MEASURE, GROUP, TILES, TILE
        )
    if MEASURE:
        if beyond > 0:
            change = _difference(z, tl.load(state + _ENTROPY), vocab_size, STEPS, TILES, TILE)
        rows = tl.num_programs(0)
        tl.store(changes + row, change)
        tl.store(changes + rows + row, first)
        tl.store(changes + 2 * rows + row, second)


@triton.jit(do_not_specialize=["key", "step", "first"])
@no_type_check
def step_kernel(
    logits,
    correct,
    scale,
    records,
    key,
    step,
    first,
    vocab_size,
    group_size,
    DIVIDE: tl.constexpr,
    OFFSET: tl.constexpr,
    MEASURE: tl.constexpr,
    GROUP: tl.constexpr,
    STEPS: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Do the whole step of a policy whose gradient no rule modifies.

    Args:
        logits: z, (B, V); moved.
        correct: 1 where the reward is, (B, V), uint8.
        scale: s = η/G, (1,), float64.
        records: Gets the numbers of `layout.RECORDS`, (RECORDS, B); |r − 1| is 0.
        key: As for `read_kernel`.
        step: As for `read_kernel`.
        first: As for `read_kernel`.
        vocab_size: V.
        group_size: G.
        DIVIDE: As for `read_kernel`.
        OFFSET: As for `read_kernel`.
        MEASURE: Whether the changes are asked for.
        GROUP: As for `read_kernel`.
        STEPS: As for `read_kernel`.
        TILES: As for `read_kernel`.
        TILE: As for `read_kernel`.
    """
    row, rows = tl.program_id(0), tl.num_programs(0)
    z = logits + row.to(tl.int64) * vocab_size
    inside = tl.arange(0, GROUP) < group_size
    top, total, mean, entropy, baseline, tail, tail_baseline, mode, sums, weights = one.statistics(
        z, vocab_size, STEPS, TILES, TILE
    )
    numbers = one.uniforms(key, step, first + row, GROUP)
    k = tl.where(inside, one.sample(z, top, sums, weights, numbers, vocab_size, STEPS, TILES, TILE), -1)
    p, u = one.look_up(z, k, inside, top, total, mean)
    S, S_c = one.discriminants(k, p, u, baseline, tail, tail_baseline, mode)
    right = tl.load(correct + row.to(tl.int64) * vocab_size + k, mask=inside, other=0).to(tl.int32)
    rewards = tl.sum(right, 0)
    above, below = one.advantages(rewards, group_size, DIVIDE, OFFSET)
    A = tl.where(right > 0, above, below)
    change, first_order, second_order, beyond = one.move_sampled(
        z, k, inside, tl.load(scale) * A, mode, total, mean, tail, p, u, MEASURE, GROUP
    )
    column = records + row
    if MEASURE:
        if beyond > 0:
            change = _difference(z, entropy, vocab_size, STEPS, TILES, TILE)
        tl.store(column, change)
        tl.store(column + rows, first_order)
        tl.store(column + 2 * rows, second_order)
    tl.store(column + 3 * rows, entropy)
    tl.store(column + 4 * rows, rewards.to(tl.float64) / group_size)
    tl.store(column + 5 * rows, tl.sum(S, 0) / group_size)
    tl.store(column + 6 * rows, tl.sum(tl.where(inside, S_c, 0.0), 0) / group_size)
    tl.store(column + 7 * rows, 0.0)
    good, bad = inside & (A > 0.0), inside & (A < 0.0)
    falls, rises = S_c > 0.0, S_c < 0.0
    tl.store(column + 8 * rows, tl.sum((good & falls).to(tl.float64), 0))
    tl.store(column + 9 * rows, tl.sum((good & rises).to(tl.float64), 0))
    tl.store(column + 10 * rows, tl.sum((bad & falls).to(tl.float64), 0))
    tl.store(column + 11 * rows, tl.sum((bad & rises).to(tl.float64), 0))


@triton.jit
@no_type_check
def _difference(z, entropy, vocab_size, STEPS: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr):
    """Give ΔH as the difference of the entropies, where the move was far."""
    tl.debug_barrier()  # all threads have written what is now read
    _, _, _, after, _, _, _, _, _, _ = one.statistics(z, vocab_size, STEPS, TILES, TILE)
    return after - entropy
