"""A step of a bank of policies in compiled code, one policy after the other while its logits are in the cache.

Threads may share the rows of a bank: nothing of a policy depends on another. The random numbers are those of the
policy's place in the whole bank. Compiled on first use and kept on disk; `dynamics.implementations` says what that
costs.

Passes over the V logits of a policy, and exponentials of all of them:

    read_policies       2 passes: the maximum, and e^d with its sums; 1 exponential
    move_policies       none where Σ_j g_j = 0; else 1 pass that reads and writes; e^d again, and e^δ − 1 if measured
    `whole_steps`       those of both

The advantages of a group sum to zero, so a rule that leaves them alone (and one that drops tokens, for each policy of
whose tokens it drops none) moves the sampled logits only. Tiles that a sample falls into are evaluated once more, the
smaller of G and V/256.
"""

from __future__ import annotations

from typing import Any, no_type_check

from entropy_theory.dynamics.kernels import layout
from entropy_theory.dynamics.kernels import policy as one
from entropy_theory.dynamics.kernels.arithmetic import fill_uniforms, look_up
from entropy_theory.dynamics.kernels.room import group_of, lists_of, tiles_of
from entropy_theory.vocab.kernels.compiled import borrowed, cached


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
    _, weights, running, starts, sums, _ = tiles_of(room, logits.shape[1])
    heads, following, _ = lists_of(room, logits.shape[1], G)
    uniforms = group_of(room, G, 0)
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
    pending, tile0, tile1, tile2, sums, after = tiles_of(room, logits.shape[1])
    heads, following, _ = lists_of(room, logits.shape[1], G)
    deltas = group_of(room, G, 0)
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
