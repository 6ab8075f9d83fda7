"""One GRPO update of a bank: rewards to advantages, a rule to coefficients, coefficients to a move of the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_theory.control import Flow, Reducer, Rule, RuleOutput, TokenBatch
from entropy_theory.control.flow import State
from entropy_theory.control.group_advantages import group_advantages as group_advantages  # also found here
from entropy_theory.control.reducers import LOCAL, token_offset
from entropy_theory.dynamics.bank import PolicyStatistics, TokenScores

AVAILABLE = frozenset(
    {
        "entropy",
        "old_log_probs",
        "rollout_log_probs",
        "old_entropy",
        "baseline",
        "discriminant",
        "centered_discriminant",
        "sum_squared_discriminant",
        "group_ids",
    }
)
"""Statistics that a rule may need and the simulation has. A reward per completion it has not: rows are policies."""


@dataclass(frozen=True, eq=False)
class GroupSamples:
    """The tokens that one step samples, and the policies they came from, as far as ratios need them.

    Attributes:
        tokens: k, (B, G).
        rewards: R, 1 where the token is right, (B, G).
        advantages: A, (B, G).
        log_probs: log p_old of the tokens, (B, G), nats.
        entropy: H of the policies that sampled, (B,), nats.

    Example:
        >>> from entropy_theory.dynamics.bank import policy_statistics
        >>> bank, k = policy_statistics(torch.zeros(1, 4)), torch.tensor([[0, 3]])
        >>> R = torch.tensor([[1.0, 0.0]]).double()
        >>> samples = GroupSamples(k, R, group_advantages(R, "mean"), bank.at(k).log_probs, bank.entropy)
        >>> samples.advantages.tolist()
        [[0.5, -0.5]]
    """

    tokens: Int[Tensor, "B G"]
    rewards: Float[Tensor, "B G"]
    advantages: Float[Tensor, "B G"]
    log_probs: Float[Tensor, "B G"]
    entropy: Float[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class Update:
    """What a rule decided about one update.

    Attributes:
        coefficients: g, (B, G).
        scale: η/n, the factor of Σ_j g_j (e_{k_j} − p); see `scale_of`.
        entropy_coefficients: Σ_j ∂J/∂H of each policy, (B,), or None.
        metrics: The rule's metrics for the present statistics.
        frozen: What the rule's batch part decided for all updates on the batch, or None when it has none.
        state: What the rule remembers.
    """

    coefficients: Float[Tensor, "B G"]
    scale: float
    entropy_coefficients: Float[Tensor, " B"] | None
    metrics: dict[str, float]
    frozen: RuleOutput | None = None
    state: State | None = None


def scale_of(step_size: float, denominator: int, policies: int) -> float:
    """Turn the token mean's denominator into the step of one policy.

    The loss is −(1/D) Σ_{b,j} J_bj over the whole bank. A step size that does not shrink with the bank is that of the
    loss times the number of policies:

        δz_b = (η/n) Σ_j g_bj (e_{k_bj} − p_b),   n = D/B.

    With every token counted D = B G and n = G, the group size. A rule with denominator "kept" lowers D for all
    policies alike, as it does for all positions of a batch in training.

    Args:
        step_size: η.
        denominator: D; 0 when no token is counted, which moves nothing.
        policies: B.

    Example:
        >>> scale_of(1.0, denominator=32, policies=2)
        0.0625
    """
    return step_size * policies / max(denominator, 1)


def decide(
    rule: Rule,
    samples: GroupSamples,
    scores: TokenScores,
    policies: dict[str, Float[Tensor, " B"]],
    *,
    step_size: float,
    generator: torch.Generator,
    state: State | None = None,
    earlier: Update | None = None,
    reducer: Reducer = LOCAL,
) -> Update:
    """Let a rule decide the coefficients of one update.

    g_j = r_j A_j times what the rule makes of it, r = p/p_old. The batch part of a rule (`Rule.split`) is evaluated
    once per sampled batch: its effective advantages Â stay, and later updates use g = r Â and the same denominator. The
    live part is evaluated at every update, with the statistics of that moment.

    Args:
        rule: The rule.
        samples: The sampled batch.
        scores: Scores of its tokens under the present policies.
        policies: Per-policy statistics under the names of `TokenBatch`: entropy, baseline, and
            sum_squared_discriminant when the rule needs it; (B,) each.
        step_size: η.
        generator: For rules that draw.
        state: What the rule returned at its last batch.
        earlier: The first update on the same batch; None for the first itself.
        reducer: The ranks that share the policies out; statistics and denominator are those of all.

    Returns:
        The coefficients, their scale, and the metrics.

    Raises:
        ValueError: The rule refuses the batch.

    Example:
        >>> from entropy_theory.control import rule
        >>> from entropy_theory.dynamics.bank import policy_statistics
        >>> bank, k = policy_statistics(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([[0, 2]])
        >>> R, scores = torch.tensor([[1.0, 0.0]]).double(), bank.at(k)
        >>> samples = GroupSamples(k, R, group_advantages(R, "mean"), scores.log_probs, bank.entropy)
        >>> statistics = {"entropy": bank.entropy, "baseline": bank.baseline}
        >>> update = decide(rule("none"), samples, scores, statistics, step_size=1.0, generator=torch.Generator())
        >>> update.coefficients.tolist(), update.scale, update.metrics["quadrant_share_q1"]
        ([[0.5, -0.5]], 0.5, 0.5)
    """
    shape = samples.tokens.shape
    offset, bank_size = token_offset(shape[0], reducer)  # policies, not tokens
    per_token = {name: value.unsqueeze(-1).expand(shape) for name, value in policies.items()}
    optional = {
        "rollout_log_probs": lambda: samples.log_probs,
        "old_entropy": lambda: samples.entropy.unsqueeze(-1).expand(shape),
        "group_ids": lambda: torch.arange(offset, offset + shape[0], device=samples.tokens.device),
    }
    fields = {name: make() for name, make in optional.items() if name in rule.needs}
    if earlier is not None or "old_log_probs" in rule.needs:
        fields["old_log_probs"] = samples.log_probs
    batch = TokenBatch(
        log_probs=scores.log_probs,
        advantages=samples.advantages,
        completion_mask=torch.ones(shape, dtype=torch.bool, device=samples.tokens.device),
        discriminant=scores.discriminant,
        centered_discriminant=scores.centered_discriminant,
        **per_token,
        **fields,
    )
    batch_part, live_part = rule.split()
    frozen, states, metrics = None, [], {}
    if batch_part is not None:
        frozen = earlier.frozen if earlier else batch_part.apply(batch, reducer, generator=generator, state=state)
        assert frozen is not None
        states, metrics = [frozen.state], dict(frozen.metrics)
    if live_part is not None:
        output = live_part.apply(batch, reducer, generator=generator, state=state, after=frozen)
        coefficients, states = output.coefficients, [*states, output.state]
        metrics |= output.metrics
    else:
        assert frozen is not None
        output, coefficients = frozen, frozen.coefficients
        if earlier is not None:
            coefficients = Flow.start(batch, after=frozen).coefficients
            numbers = batch.quadrants()
            counts = reducer.sum(torch.stack([torch.count_nonzero(numbers == q) for q in (1, 2, 3, 4)])).tolist()
            total = bank_size * shape[1]
            metrics |= {f"quadrant_share_q{q}": count / total for q, count in enumerate(counts, start=1)}
    bonus = output.entropy_coefficients
    return Update(
        coefficients=coefficients,
        scale=scale_of(step_size, int(output.denominator), bank_size),
        entropy_coefficients=None if bonus is None else bonus.sum(dim=-1),
        metrics=metrics,
        frozen=frozen,
        state=_joined(states),
    )


def _joined(states: list[State | None]) -> State | None:
    """The state of a rule from those of its parts: mappings with different keys when there are two."""
    present = [state for state in states if state is not None]
    return {key: value for state in present for key, value in state.items()} if present else None


def move_of_logits(
    policy: PolicyStatistics,
    tokens: Int[Tensor, "B G"],
    coefficients: Float[Tensor, "B G"],
    scale: float,
    entropy_coefficients: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, "B V"]:
    """Turn coefficients into the gradient step of the logits.

    Theorem 3.3 of arXiv 2602.03392 for one token, summed over the group; ∂ log p_k/∂z = e_k − p, ∂H/∂z = −S.

    Formula: δz = s [Σ_j g_j (e_{k_j} − p) − c S].

    Args:
        policy: p and S, for B policies.
        tokens: k, (B, G).
        coefficients: g, (B, G).
        scale: s = η/n.
        entropy_coefficients: c = Σ_j ∂J/∂H_j, (B,), or None for 0.

    Returns:
        δz, (B, V).

    Example:
        >>> from entropy_theory.dynamics.bank import policy_statistics
        >>> bank = policy_statistics(torch.zeros(1, 4))
        >>> move_of_logits(bank, torch.tensor([[2]]), torch.ones(1, 1).double(), 1.0).tolist()
        [[-0.25, -0.25, 0.75, -0.25]]
    """
    scaled = coefficients * scale
    move = policy.probs * -scaled.sum(dim=-1, keepdim=True)
    move.scatter_add_(-1, tokens, scaled)
    if entropy_coefficients is not None:
        move -= policy.discriminants().mul_(scale * entropy_coefficients.unsqueeze(-1))
    return move
