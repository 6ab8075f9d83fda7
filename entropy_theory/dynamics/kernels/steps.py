"""A step of a bank of policies in compiled code, one policy after the other while its logits are in the cache.

Threads may share the rows of a bank: nothing of a policy depends on another. The random numbers are those of the
policy's place in the whole bank. Compiled on first use and kept on disk; `dynamics.implementations` says what that
costs.

Passes over the V logits of a policy, and exponentials of all of them:

    read_policies       2 passes: the maximum, and e^d with its sums; 1 exponential
    move_policies       none where Σ_j g_j = 0; else 1 pass that reads and writes; e^d again, and e^δ − 1 if measured
    unmodified_steps    those of both, one policy at a time

The advantages of a group sum to zero, so a rule that leaves them alone (and one that drops tokens, for each policy of
whose tokens it drops none) moves the sampled logits only. Tiles that a sample falls into are evaluated once more, the
smaller of G and V/256.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
from numba import njit
from numpy.typing import NDArray

from entropy_theory.dynamics.kernels import layout
from entropy_theory.dynamics.kernels import policy as one
from entropy_theory.dynamics.kernels.arithmetic import TILE, fill_uniforms, look_up
from entropy_theory.vocab.kernels.compiled import borrowed, cached

_GROUPS = 4  # numbers per sampled token that the loops keep at hand

_compiled = njit(nogil=True, error_model="numpy", forceinline=True)

Room = tuple[NDArray[np.float64], NDArray[np.int64]]


def room_for(vocab_size: int, group_size: int) -> Room:
    """Make the room that a thread needs for its policies: V zeros, some tiles, and some numbers per sampled token.

    Example:
        >>> [part.size for part in room_for(100, 16)]
        [951, 33]
    """
    tiles = -(-vocab_size // TILE)
    numbers = vocab_size + 3 * TILE + tiles + 2 * layout.STATE + _GROUPS * group_size
    return np.zeros(numbers), np.empty(tiles + 2 * group_size, np.int64)


@_compiled
@no_type_check
def _tiles(room: Any, vocab_size: int) -> Any:
    """Give the zeros, three tiles, the sums of all tiles, and a policy's statistics."""
    numbers, end = borrowed(room[0]), vocab_size + 3 * TILE
    sums = end + (vocab_size + TILE - 1) // TILE
    return (
        numbers[:vocab_size],
        numbers[vocab_size : vocab_size + TILE],
        numbers[vocab_size + TILE : vocab_size + 2 * TILE],
        numbers[vocab_size + 2 * TILE : end],
        numbers[end:sums],
        numbers[sums : sums + layout.STATE],
    )


@_compiled
@no_type_check
def _state(room: Any, vocab_size: int) -> Any:
    """Give another policy's statistics, which follow those of `_tiles`."""
    start = vocab_size + 3 * TILE + (vocab_size + TILE - 1) // TILE + layout.STATE
    return borrowed(room[0])[start : start + layout.STATE]


@_compiled
@no_type_check
def _lists(room: Any, vocab_size: int, group_size: int) -> Any:
    """Give the heads of the tiles' lists, the followers in them, and a group's tokens."""
    places, tiles = borrowed(room[1]), (vocab_size + TILE - 1) // TILE
    return places[:tiles], places[tiles : tiles + group_size], places[tiles + group_size :]


@_compiled
@no_type_check
def _group(room: Any, group_size: int, which: int) -> Any:
    """Give one of the four parts that hold a number per sampled token."""
    numbers = borrowed(room[0])
    start = numbers.size - (which + 1) * group_size
    return numbers[start : start + group_size]


@cached
@no_type_check
def read_policies(
    logits: Any,
    correct: Any,
    draw: Any,
    divide: bool,
    offset: float,
    room: Any,
    rewards: Any,
    advantages: Any,
    tokens: Any,
    likeliest: Any,
    states: Any,
    probs: Any,
    excess: Any,
    log_probs: Any,
    S: Any,
    S_c: Any,
    squares: Any,
) -> None:
    """Evaluate policies, sample a group of tokens from each, reward and score the tokens.

    Args:
        logits: z, (b, V), float64 or float32.
        correct: Where the reward is 1, (b, V), bool.
        draw: Seed, purpose, step and the first policy's place, integers; what `draws.policy_uniforms` is of.
        divide: Whether advantages are divided by the deviation of their group.
        offset: What `group_advantages` adds to it.
        room: What `room_for` makes; a thread's own.
        rewards: Gets R, (b, G); or (b, 0) to sample nothing and score the tokens that are there.
        advantages: Gets A, (b, G) or (b, 0).
        tokens: k, (b, G), int64.
        likeliest: Gets each policy's likeliest token, (b,), int64.
        states: Gets the statistics, (b, STATE).
        probs: Gets p of the tokens, (b, G).
        excess: Gets u = H + log p of the tokens, (b, G).
        log_probs: Gets log p, (b, G).
        S: Gets S, (b, G).
        S_c: Gets S_c, (b, G).
        squares: Gets Σ S² of each policy, (b,), at the price of another pass and exponential; or empty.
    """
    G = tokens.shape[1]
    _, weights, running, starts, sums, _ = _tiles(room, logits.shape[1])
    heads, following, _ = _lists(room, logits.shape[1], G)
    uniforms = _group(room, G, 0)
    logits, states, tokens = borrowed(logits), borrowed(states), borrowed(tokens)
    correct, rewards, advantages = borrowed(correct), borrowed(rewards), borrowed(advantages)
    probs, excess, log_probs, S, S_c = (
        borrowed(probs),
        borrowed(excess),
        borrowed(log_probs),
        borrowed(S),
        borrowed(S_c),
    )
    seed, purpose, step, first = draw
    for row in range(logits.shape[0]):
        z, state, k = logits[row], states[row], tokens[row]
        likeliest[row] = one.statistics(z, weights, sums, state)
        if rewards.shape[1] > 0:
            fill_uniforms(seed, purpose, step, first + row, uniforms)
            one.sample(z, state, uniforms, weights, sums, running, starts, heads, following, k, probs[row], excess[row])
            right, R, A = correct[row], rewards[row], advantages[row]
            count = 0
            for j in range(G):
                count += right[k[j]]
            above, below = one.advantages(count, G, divide, offset)
            for j in range(G):
                R[j], A[j] = (1.0, above) if right[k[j]] else (0.0, below)
        else:
            look_up(z, k, state[layout.TOP], state[layout.TOTAL], state[layout.MEAN], probs[row], excess[row])
        p, u, log_p, own_S, own_S_c = probs[row], excess[row], log_probs[row], S[row], S_c[row]
        total, total_centered = 0.0, 0.0
        for j in range(G):
            log_p[j] = u[j] - state[layout.ENTROPY]
            value, centered = one.discriminants(k[j], likeliest[row], state, p[j], u[j])
            own_S[j], own_S_c[j] = value, centered
            total += value
            total_centered += centered
        state[layout.MEAN_S], state[layout.MEAN_S_C] = total / G, total_centered / G
        if squares.size > 0:
            squares[row] = one.sum_squares(z, state, weights, running, starts)


@cached
@no_type_check
def move_policies(
    logits: Any,
    tokens: Any,
    scaled: Any,
    bonus: Any,
    likeliest: Any,
    states: Any,
    probs: Any,
    excess: Any,
    room: Any,
    far: float,
    measure: bool,
    changes: Any,
) -> None:
    """Move policies by the policy gradient and measure what that does to their entropy.

    Args:
        logits: z, (b, V); moved.
        tokens: k, (b, G).
        scaled: s g, (b, G).
        bonus: s c of each policy's entropy terms, (b,).
        likeliest: What `read_policies` wrote, (b,).
        states: What `read_policies` wrote, (b, STATE).
        probs: What `read_policies` wrote, (b, G).
        excess: What `read_policies` wrote, (b, G).
        room: What `room_for` makes; a thread's own.
        far: `bank.FAR`.
        measure: Whether the changes are asked for.
        changes: Gets ΔH, first and second order, (b, 3).
    """
    G = tokens.shape[1]
    pending, tile0, tile1, tile2, sums, after = _tiles(room, logits.shape[1])
    heads, following, _ = _lists(room, logits.shape[1], G)
    deltas = _group(room, G, 0)
    logits, tokens, scaled = borrowed(logits), borrowed(tokens), borrowed(scaled)
    states, probs, excess, changes = borrowed(states), borrowed(probs), borrowed(excess), borrowed(changes)
    for row in range(logits.shape[0]):
        z, k, g, state, change = logits[row], tokens[row], scaled[row], states[row], changes[row]
        gradient, size = 0.0, 0.0
        for j in range(G):
            gradient += g[j]
            size += abs(g[j])
        # Advantages sum to zero up to their rounding, which is no reason to move every logit.
        if bonus[row] == 0.0 and abs(gradient) <= G * layout.EPSILON * size:
            for j in range(G):
                pending[k[j]] += g[j]
            one.move_sampled(
                *(z, k, pending, likeliest[row], state, probs[row], excess[row], deltas, tile0, sums, after),
                *(far, measure, change),
            )
        else:
            one.move_all(
                *(z, k, g, gradient, bonus[row], likeliest[row], state, tile0, tile1, tile2, heads, following),
                *(sums, after, far, measure, change),
            )


@cached
@no_type_check
def unmodified_steps(
    logits: Any,
    correct: Any,
    draw: Any,
    group_size: int,
    scale: float,
    divide: bool,
    offset: float,
    room: Any,
    far: float,
    measure: bool,
    start: int,
    records: Any,
) -> None:
    """Do the whole step of policies whose gradient no rule modifies.

    Args:
        logits: z, (b, V); moved.
        correct: Where the reward is 1, (b, V), bool.
        draw: As for `read_policies`.
        group_size: G.
        scale: s = η/G.
        divide: As for `read_policies`.
        offset: As for `read_policies`.
        room: What `room_for` makes; a thread's own.
        far: `bank.FAR`.
        measure: Whether the changes are asked for.
        start: The first policy's column in the records.
        records: Gets a column for each policy, the numbers of `layout.RECORDS`, (RECORDS, any); |r − 1| is 0.
    """
    G = group_size
    pending, weights, running, starts, sums, after = _tiles(room, logits.shape[1])
    heads, following, tokens = _lists(room, logits.shape[1], G)
    uniforms, probs, excess, centered = _group(room, G, 0), _group(room, G, 1), _group(room, G, 2), _group(room, G, 3)
    state = _state(room, logits.shape[1])
    logits, correct, change = borrowed(logits), borrowed(correct), np.empty(3)
    seed, purpose, step, first = draw
    for row in range(logits.shape[0]):
        z, right, column = logits[row], correct[row], start + row
        likeliest = one.statistics(z, weights, sums, state)
        fill_uniforms(seed, purpose, step, first + row, uniforms)
        one.sample(z, state, uniforms, weights, sums, running, starts, heads, following, tokens, probs, excess)
        rewards, total, total_centered = 0, 0.0, 0.0
        for j in range(G):
            S, S_c = one.discriminants(tokens[j], likeliest, state, probs[j], excess[j])
            rewards += right[tokens[j]]
            total += S
            total_centered += S_c
            centered[j] = S_c
        above, below = one.advantages(rewards, G, divide, offset)
        q1, q2, q3, q4 = 0, 0, 0, 0
        for j in range(G):
            reward = right[tokens[j]]
            pending[tokens[j]] += scale * (above if reward else below)
            rises, falls = centered[j] < 0.0, centered[j] > 0.0
            q1 += reward & falls
            q2 += reward & rises
            q3 += (not reward) & falls
            q4 += (not reward) & rises
        one.move_sampled(
            *(z, tokens, pending, likeliest, state, probs, excess, uniforms, weights, sums, after),
            *(far, measure, change),
        )
        counted = 1.0 if above > 0.0 else 0.0  # A = 0 is in no quadrant
        records[0, column], records[1, column], records[2, column] = change[0], change[1], change[2]
        records[3, column], records[4, column] = state[layout.ENTROPY], rewards / G
        records[5, column], records[6, column], records[7, column] = total / G, total_centered / G, 0.0
        records[8, column], records[9, column] = counted * q1, counted * q2
        records[10, column], records[11, column] = counted * q3, counted * q4
