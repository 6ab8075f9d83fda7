"""Rules that are fixed once per batch, for verl and its forks: pure functions on tensors and on verl's containers.

Nothing here needs verl. Ratio-based rules become policy losses in `bridge.verl_losses`; the trainer
and the engine that carry both inside verl are in `bridge.verl_trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_theory.bridge.metrics import PREFIX, batch_metrics
from entropy_theory.control import LocalReducer, Reducer, Rule, RuleOutput, TokenBatch
from entropy_theory.control import rule as build_rule
from entropy_theory.control.base import observed_share
from entropy_theory.control.denominators import VERL_DIVISORS, shrinkage
from entropy_theory.errors import invalid

_OPTIONAL = ("rollout_log_probs", "baseline", "discriminant", "centered_discriminant", "sum_squared_discriminant")
_STATISTICS = (*_OPTIONAL, "grpo_curvature", "rewards", "group_ids")


@dataclass(frozen=True)
class FunctionReducer:
    """A reducer made of a trainer's own two collectives.

    Args:
        reduce_sum: Adds a tensor over the ranks, elementwise.
        gather: Concatenates 1-D tensors of different lengths in rank order.
        rank: This process's place in that order.
        world_size: The number of processes.

    Example:
        >>> FunctionReducer(lambda x: x, lambda x: x).sum(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    reduce_sum: Callable[[Tensor], Tensor]
    gather_1d: Callable[[Tensor], Tensor]
    rank: int = 0
    world_size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Add over the ranks in double precision (int64 for integers)."""
        wide = values.detach().to(torch.float64 if values.is_floating_point() else torch.int64)
        return self.reduce_sum(wide).to(values.device)

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate the 1-D tensors of all ranks."""
        return self.gather_1d(values.detach()).to(values.device)


@dataclass(frozen=True, eq=False)
class RuleAdvantages:
    """What a rule makes of a batch, in verl's terms.

    Args:
        advantages: (B, T), 0 at masked positions; for a loss that counts every valid token.
        metrics: Global numbers for the log, prefixed `entropy_control/`.
        state: What the rule wants back at the next step; JSON-ready, None when it keeps nothing.
    """

    advantages: Tensor
    metrics: dict[str, float]
    state: Any = None


def check_batch_rule(rule: Rule) -> None:
    """Check that advantages can carry a rule.

    Raises:
        ValueError: the rule reads the importance ratio, or adds ∂J/∂H.

    Example:
        >>> check_batch_rule(build_rule("clip-b|ppo-clip"))
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: rule: expected a rule that is fixed once per batch (the ratio-based ...
        the policy loss), received 'clip-b|ppo-clip'
    """
    if rule.entropy_term:
        expected = "a rule that acts through advantages (verl has its own entropy bonus: actor.entropy_coeff)"
        raise invalid("rule", expected, f"{str(rule)!r}, which adds ∂J/∂H")
    live = rule.split()[1]
    if live is not None:
        expected = f"a rule that is fixed once per batch (the ratio-based part {str(live)!r} belongs into "
        expected += "the policy loss)"
        raise invalid("rule", expected, repr(str(rule)))


def check_needs(rule: Rule, entropy: bool) -> None:
    """Check that a rule which reads the entropy is given it: verl passes none to registered functions.

    Raises:
        ValueError: it reads H and there is none.
    """
    if "entropy" in rule.needs and not entropy:
        raise invalid("entropy", f"a tensor, because {str(rule)!r} reads it (verl passes none here)", None)


def effective_advantages(
    output: RuleOutput, mask: Tensor, loss_agg_mode: str = "token-mean", reducer: Reducer | None = None
) -> Tensor:
    """Express a rule's coefficients and its smaller token count as advantages for a loss that counts all tokens.

        token-mean           Â_t = g_t · n / n_counted, over all ranks
        seq-mean-token-mean  Â_t = g_t · |row| / |row counted|
        otherwise            Â_t = g_t

    Args:
        output: What the rule made of the batch.
        mask: The trainer's valid tokens, (B, T).
        loss_agg_mode: One of verl's five names.
        reducer: The collectives for the counts; None is one process.

    Returns:
        Â, (B, T), 0 at masked positions.

    Raises:
        ValueError: an unknown aggregation.

    Example:
        >>> x, A = torch.tensor([[-0.1, -0.1, -1.5, -0.1]]), torch.tensor([-1.0])
        >>> out = build_rule("clip-b(mu=1)").apply(TokenBatch(x, x * 0 + 0.5, A, x * 0 + 1))
        >>> [round(a, 3) for a in effective_advantages(out, x < 0)[0].tolist()]
        [-1.333, -1.333, 0.0, -1.333]
    """
    if loss_agg_mode not in VERL_DIVISORS:
        raise invalid("loss_agg_mode", f"one of {', '.join(VERL_DIVISORS)}", repr(loss_agg_mode))
    scale = shrinkage(mask, output.counted_mask, VERL_DIVISORS[loss_agg_mode], reducer or LocalReducer())
    return output.coefficients if scale is None else output.coefficients * scale


def advantages_under_rule(
    rule: str | Rule,
    old_log_probs: Tensor,
    entropy: Tensor | None,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    loss_agg_mode: str = "token-mean",
    reduce_sum: Callable[[Tensor], Tensor] | None = None,
    gather: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
    world_size: int = 1,
    generator: torch.Generator | None = None,
    state: Any = None,
    observe: tuple[str | Rule, ...] = (),
    **statistics: Tensor | None,
) -> RuleAdvantages:
    """Apply a rule that is fixed once per batch, and say what it does in advantages.

    The loss keeps its form r Â; Â is the rule's g at ratio 1, rescaled where the rule shrinks the count that the
    aggregation divides by (see `effective_advantages`).

    Args:
        rule: A rule or its specification.
        old_log_probs: log p of the sampled tokens under the policy before the update, (B, T), nats.
        entropy: H of that policy, (B, T), nats; None where the trainer has none and the rule reads none.
        advantages: A, (B,) or (B, T).
        response_mask: 1 at valid tokens, (B, T).
        loss_agg_mode: How the loss will aggregate.
        reduce_sum: Adds a tensor over the ranks; None when the whole batch is here.
        gather: Concatenates 1-D tensors of different lengths in rank order; given together with `reduce_sum`.
        rank: This process's place in that order.
        world_size: The number of processes.
        generator: For rules that draw at random; in the same state on every rank.
        state: What the last call returned.
        observe: Rules that are asked what they would drop, and change nothing.
        **statistics: Further fields of `TokenBatch`: rollout_log_probs (values that are not finite are taken from
            `old_log_probs`), baseline or centered_discriminant (which Clip_V needs), rewards, group_ids and so on.

    Returns:
        Advantages, metrics, state.

    Raises:
        ValueError: the rule is ratio-based, adds an entropy term or needs what was not given; an observed rule
            remembers earlier batches.

    Example:
        >>> log_probs = torch.tensor([[-0.1, -0.1, -1.5, -0.1]])
        >>> out = advantages_under_rule("clip-b(mu=1, denominator='valid')", log_probs, torch.full((1, 4), 0.5),
        ...                             torch.tensor([-1.0]), torch.ones(1, 4))
        >>> out.advantages.tolist(), out.metrics["entropy_control/dropped"]
        ([[-1.0, -1.0, 0.0, -1.0]], 1.0)
    """
    rule = build_rule(rule)
    observed = [build_rule(spec) for spec in observe]
    for asked in (rule, *observed):
        check_batch_rule(asked)
        check_needs(asked, entropy is not None)
    for name in statistics:
        if name not in _STATISTICS:
            raise invalid(name, f"one of {', '.join(_STATISTICS)}", "an unknown field")
    if (reduce_sum is None) != (gather is None):
        raise invalid("gather", "given together with reduce_sum", "one of the two")
    reducer: Reducer = LocalReducer()
    if reduce_sum is not None and gather is not None:
        reducer = FunctionReducer(reduce_sum, gather, rank, world_size)
    mask = response_mask.bool()
    if not reducer.sum(mask.sum()) > 0:  # nothing to learn from: the loss is zero on this batch
        return RuleAdvantages(torch.zeros_like(old_log_probs), {f"{PREFIX}empty_batch": 1.0}, state)
    rollout = statistics.get("rollout_log_probs")
    if rollout is not None:
        statistics["rollout_log_probs"] = torch.where(torch.isfinite(rollout), rollout, old_log_probs)
    batch = TokenBatch(
        log_probs=old_log_probs,
        entropy=-old_log_probs if entropy is None else entropy,  # without one, no rule here reads it
        advantages=advantages,
        completion_mask=mask,
        old_log_probs=old_log_probs,
        old_entropy=entropy,
        **statistics,
    )
    drawn = None if generator is None else generator.get_state()
    output = rule.apply(batch, reducer=reducer, generator=generator, state=state)
    result = effective_advantages(output, mask, loss_agg_mode, reducer)
    metrics = dict(output.metrics)
    if entropy is not None:
        metrics |= batch_metrics(batch, result, reducer)
    for asked in observed:
        again = None if generator is None or drawn is None else torch.Generator(generator.device).set_state(drawn)
        metrics[f"observed/{asked}/dropped_share"] = observed_share(asked, batch, reducer, again)
    return RuleAdvantages(result, {PREFIX + name: value for name, value in metrics.items()}, output.state)


def apply_to_batch(rule: str | Rule, data: Any, **options: Any) -> RuleAdvantages:
    """Apply a rule to verl's `DataProto`, to a `TensorDict` or to a mapping of tensors, and put the advantages back.

    Reads `old_log_probs`, `advantages`, `response_mask` and, where present, `entropy` (or `entropys`),
    `rollout_log_probs`, `baseline`, `discriminant`, `centered_discriminant`, `sum_squared_discriminant`; the rewards of
    W-REINFORCE from `rm_scores`, `token_level_scores` or `token_level_rewards`, prompts from `uid`. Padded (B, T) or
    jagged nested tensors; the advantages come back in the form that they had.

    Args:
        rule: A rule or its specification.
        data: The batch; its `advantages` are replaced.
        **options: As for `advantages_under_rule`: loss_agg_mode, the collectives, generator, state, observe.

    Returns:
        Advantages (padded), metrics, state.

    Raises:
        ValueError: a field is missing.

    Example:
        >>> x = torch.tensor([[-0.1, -0.1, -1.5, -0.1]])
        >>> data = {"old_log_probs": x, "entropy": x * 0 + 0.5, "advantages": x * 0 - 1, "response_mask": x * 0 + 1}
        >>> apply_to_batch("clip-b(mu=1, denominator='valid')", data).metrics["entropy_control/dropped"]
        1.0
        >>> data["advantages"].tolist()
        [[-1.0, -1.0, 0.0, -1.0]]
    """
    tensors: MutableMapping[str, Any] = getattr(data, "batch", data)
    present = set(tensors.keys())
    for name in ("old_log_probs", "advantages", "response_mask"):
        if name not in present:
            raise invalid(name, "a field of the batch", f"only {', '.join(sorted(map(str, present)))}")
    lengths = tensors["response_mask"].offsets().diff() if tensors["response_mask"].is_nested else None
    uid = getattr(data, "non_tensor_batch", {}).get("uid", tensors["uid"] if "uid" in present else None)
    # before a KL penalty where it can be had: W-REINFORCE asks which answers are right
    raw = ("rm_scores", "token_level_scores", "token_level_rewards")
    scores = next((tensors[name] for name in raw if name in present), None)
    entropy = next((tensors[name] for name in ("entropy", "entropys") if name in present), None)
    device = tensors["old_log_probs"].device
    optional: dict[str, Any] = {name: _padded(tensors[name]) for name in _OPTIONAL if name in present}
    result = advantages_under_rule(
        rule,
        _padded(tensors["old_log_probs"]),
        None if entropy is None else _padded(entropy),
        _padded(tensors["advantages"]),
        _padded(tensors["response_mask"]),
        rewards=None if scores is None else _padded(scores).sum(dim=1),
        group_ids=None if uid is None else torch.from_numpy(_numbered(uid)).to(device),
        **optional,
        **options,
    )
    back = result.advantages
    if lengths is not None:
        rows = [row[:length] for row, length in zip(back, lengths.tolist(), strict=True)]
        back = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    tensors["advantages"] = back
    return result


def _padded(values: Tensor) -> Tensor:
    return torch.nested.to_padded_tensor(values, 0) if values.is_nested else values


def _numbered(uid: Any) -> Any:
    names = uid.tolist() if hasattr(uid, "tolist") else list(uid)
    return np.unique(np.array([str(name) for name in names]), return_inverse=True)[1].astype(np.int64)
