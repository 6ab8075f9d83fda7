"""Whole steps of a bank of policies in compiled code, for the rules that have one: none, and Clip_B.

    unmodified_steps    one sweep: evaluate, sample, move, one policy at a time
    score_groups, drop_outliers
                        two of three sweeps for a rule that compares the scores of all policies, the second over samples
                        alone; `steps.move_policies` is the third

`steps` has the passes and exponentials, and the arguments that are not explained here.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
from numba import njit

from entropy_theory.dynamics.kernels import layout
from entropy_theory.dynamics.kernels import policy as one
from entropy_theory.dynamics.kernels.arithmetic import fill_uniforms
from entropy_theory.dynamics.kernels.room import group_of, lists_of, state_of, tiles_of
from entropy_theory.vocab.kernels.compiled import borrowed, cached

_compiled = njit(nogil=True, error_model="numpy", forceinline=True)


@_compiled
@no_type_check
def score_group(
    z: Any,
    right: Any,
    draw: Any,
    row: int,
    divide: bool,
    offset: float,
    room: Any,
    tokens: Any,
    probs: Any,
    excess: Any,
    advantages: Any,
    state: Any,
    records: Any,
    column: int,
) -> int:
    """Evaluate one policy, sample and reward its group, record all but the move; return its likeliest token."""
    G = tokens.size
    _, weights, running, starts, sums, _ = tiles_of(room, z.size)
    heads, following, _ = lists_of(room, z.size, G)
    uniforms = group_of(room, G, 0)
    seed, purpose, step, first = draw
    likeliest = one.statistics(z, weights, sums, state)
    fill_uniforms(seed, purpose, step, first + row, uniforms)
    one.sample(z, state, uniforms, weights, sums, running, starts, heads, following, tokens, probs, excess)
    hits = advantages  # in their place until A is known
    for j in range(G):
        hits[j] = 1.0 if right[tokens[j]] else 0.0
    rewards, total, total_centered, falls, rises, q1, q2 = one.group_sums(tokens, hits, likeliest, state, probs, excess)
    above, below = one.advantages(rewards, G, divide, offset)
    for j in range(G):
        advantages[j] = above if hits[j] > 0.0 else below
    counted = 1.0 if above > 0.0 else 0.0  # A = 0 is in no quadrant
    state[layout.MEAN_S] = total / G
    records[3, column], records[4, column] = state[layout.ENTROPY], rewards / G
    records[5, column], records[6, column], records[7, column] = total / G, total_centered / G, 0.0
    records[8, column], records[9, column] = counted * q1, counted * q2
    records[10, column], records[11, column] = counted * (falls - q1), counted * (rises - q2)
    return likeliest


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
    pending, weights, _, _, sums, after = tiles_of(room, logits.shape[1])
    _, _, tokens = lists_of(room, logits.shape[1], G)
    deltas, probs, excess, A = group_of(room, G, 0), group_of(room, G, 1), group_of(room, G, 2), group_of(room, G, 3)
    state = state_of(room, logits.shape[1])
    logits, correct, change = borrowed(logits), borrowed(correct), np.empty(3)
    for row in range(logits.shape[0]):
        z, right, column = logits[row], correct[row], start + row
        likeliest = score_group(
            *(z, right, draw, row, divide, offset, room, tokens, probs, excess, A, state, records, column)
        )
        for j in range(G):
            pending[tokens[j]] += scale * A[j]
        one.move_sampled(
            *(z, tokens, pending, likeliest, state, probs, excess, deltas, weights, sums, after),
            *(far, measure, change),
        )
        records[0, column], records[1, column], records[2, column] = change[0], change[1], change[2]


@cached
@no_type_check
def score_groups(
    logits: Any,
    correct: Any,
    draw: Any,
    divide: bool,
    offset: float,
    room: Any,
    tokens: Any,
    likeliest: Any,
    states: Any,
    probs: Any,
    excess: Any,
    advantages: Any,
    squares: Any,
    start: int,
    records: Any,
) -> None:
    """Evaluate policies, sample a group from each, and record all of their step but the move.

    Args:
        logits: z, (b, V).
        correct: Where the reward is 1, (b, V), bool.
        draw: As for `read_policies`.
        divide: As for `read_policies`.
        offset: As for `read_policies`.
        room: What `room_for` makes; a thread's own.
        tokens: Gets k, (b, G).
        likeliest: As for `read_policies`.
        states: As for `read_policies`.
        probs: As for `read_policies`.
        excess: As for `read_policies`.
        advantages: Gets A, (b, G).
        squares: Gets Σ_j (S_j − mean S)² of each group, (b,).
        start: As for `unmodified_steps`.
        records: As for `unmodified_steps`, but for the first three numbers.
    """
    logits, correct, states, tokens = borrowed(logits), borrowed(correct), borrowed(states), borrowed(tokens)
    probs, excess, advantages = borrowed(probs), borrowed(excess), borrowed(advantages)
    for row in range(logits.shape[0]):
        p, u, state = probs[row], excess[row], states[row]
        likeliest[row] = score_group(
            *(logits[row], correct[row], draw, row, divide, offset, room, tokens[row], p, u, advantages[row], state),
            *(records, start + row),
        )
        squares[row] = one.sum_deviations(p, u, state[layout.MEAN_S])


@cached
@no_type_check
def drop_outliers(
    probs: Any,
    excess: Any,
    origin: float,
    threshold: float,
    side: int,
    negative: bool,
    zero: bool,
    positive: bool,
    advantages: Any,
    dropped: Any,
) -> None:
    """Drop the tokens whose S lies too far from the origin: `control.rules.clip_bv.violation` above a threshold.

    Args:
        probs: What `score_groups` wrote, (b, G).
        excess: What `score_groups` wrote, (b, G).
        origin: The S from which deviations are measured.
        threshold: The largest deviation that is kept.
        side: −1 for deviations below the origin, 1 above, 0 both.
        negative: Whether tokens with A < 0 may be dropped.
        zero: The same with A = 0.
        positive: The same with A > 0.
        advantages: What `score_groups` wrote, (b, G); gets 0 for the dropped tokens.
        dropped: Gets how many of each group are dropped, (b,).
    """
    probs, excess, advantages = borrowed(probs), borrowed(excess), borrowed(advantages)
    for row in range(probs.shape[0]):
        p, u, A, lost = probs[row], excess[row], advantages[row], 0
        for j in range(p.size):
            deviation = p[j] * u[j] - origin
            out = abs(deviation) if side == 0 else side * deviation
            may_go = (negative & (A[j] < 0.0)) | (zero & (A[j] == 0.0)) | (positive & (A[j] > 0.0))
            gone = may_go & (out > threshold)
            A[j] = 0.0 if gone else A[j]
            lost += gone
        dropped[row] = lost
