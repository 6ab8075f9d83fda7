"""Ratio-based rules as verl's registered policy losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from entropy_theory.bridge.metrics import PREFIX
from entropy_theory.bridge.verl.advantages import check_needs
from entropy_theory.control import Pipe, Rule, TokenBatch
from entropy_theory.control import rule as build_rule
from entropy_theory.errors import invalid, missing_extra

LOSS_PREFIX = "entropy_theory:"
MICRO_BATCH = "@micro-batch"


def check_live_rule(rule: Rule, *, entropy: bool = False, micro_batch_statistics: bool = False) -> None:
    """Check that a policy loss of verl can compute a rule exactly.

    verl calls its policy losses once per micro-batch of one rank and gives them no entropy.

    Args:
        rule: The rule.
        entropy: Whether the caller passes the entropy, as some forks do.
        micro_batch_statistics: Accept means, quantiles and top-k over the micro-batch, which verl's own `clip_cov` and
            `kl_cov` have.

    Raises:
        ValueError: the rule has a part that is fixed once per batch, needs what the loss is not given, has statistics
            over the batch, leaves tokens out of the count, adds ∂J/∂H, or keeps a state.

    Example:
        >>> check_live_rule(build_rule("clip-higher"))
        >>> check_live_rule(build_rule("kl-cov"))
        Traceback (most recent call last):
        ...
        entropy_theory.errors.InputError: rule: expected a rule of single tokens or rows (verl calls its losses ...
        statistics of that, write 'kl-cov@micro-batch'), received 'kl-cov', which has statistics over the batch
    """
    spec, members = str(rule), rule.rules if isinstance(rule, Pipe) else (rule,)
    if rule.split()[0] is not None:
        raise invalid(
            "rule", "the ratio-based part alone (the rest belongs to the trainer, once per batch)", repr(spec)
        )
    given = {"old_log_probs", "entropy", *(["old_entropy"] if entropy else [])}
    missing = [name for name in rule.needs if name not in given]
    if missing:
        raise invalid("rule", f"one that needs only what verl's losses get, not {', '.join(missing)}", repr(spec))
    if rule.entropy_term:
        raise invalid("rule", "one without an entropy term (verl has actor.entropy_coeff)", repr(spec))
    if any(getattr(member, "denominator", None) in ("kept", "auto") for member in members):
        raise invalid("rule", "denominator='valid': verl has counted its tokens before the loss", repr(spec))
    check_needs(rule, entropy)
    if rule.scope == "batch" and not micro_batch_statistics:
        expected = "a rule of single tokens or rows (verl calls its losses per micro-batch; to accept statistics of "
        expected += f"that, write {spec + MICRO_BATCH!r})"
        raise invalid("rule", expected, f"{spec!r}, which has statistics over the batch")
    if _keeps_state(rule):
        raise invalid("rule", "one without a state (a loss runs in every worker, and no one saves it)", repr(spec))


def _keeps_state(rule: Rule) -> bool:
    """Whether a rule remembers anything from one step to the next, found out on two tokens."""
    x = torch.tensor([[-0.5, -1.5]])
    batch = TokenBatch(x, -x, torch.ones(1), torch.ones(1, 2), old_log_probs=x, old_entropy=-x)
    return rule.apply(batch, generator=torch.Generator().manual_seed(0)).state is not None


def policy_loss(
    rule: str | Rule, *, entropy: bool = False, micro_batch_statistics: bool = False
) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """Make a policy loss of verl's signature from a ratio-based rule.

    loss = agg_loss(−J_t w_t, response_mask, loss_agg_mode): J_t the rule's objective, w_t `rollout_is_weights` where
    given, and `agg_loss` verl's own with the batch sizes that verl put into `config.global_batch_info`. Parameters
    such as ε come from the rule, not from verl's configuration. Where a pipe of surrogates has no objective, the loss
    has its gradient, −g_t, and not its value. A micro-batch without a valid token gives 0 with a zero gradient.

    Args:
        rule: A ratio-based rule or its specification, such as ``clip-higher(epsilon_high=0.3)``.
        entropy: Whether the caller passes `entropy=` (and `old_entropy=`), as some forks do; verl does not.
        micro_batch_statistics: Accept statistics over the micro-batch instead of the batch.

    Returns:
        ``loss(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights)``, which
        returns the scalar and metrics.

    Raises:
        ValueError: see `check_live_rule`.
        ImportError: on the first call, verl is not installed.
    """
    live = build_rule(rule)
    check_live_rule(live, entropy=entropy, micro_batch_statistics=micro_batch_statistics)

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
        **given: Tensor,
    ) -> tuple[Tensor, dict[str, float]]:
        agg_loss = _core_algos().agg_loss
        mask = response_mask.bool()
        if not mask.any():
            return log_prob.masked_fill(~mask, 0.0).sum(), {}
        fields = {"entropy": -old_log_prob, **given}  # without one, no rule here reads it
        batch = TokenBatch(
            log_probs=log_prob, advantages=advantages, completion_mask=mask, old_log_probs=old_log_prob, **fields
        )
        # verl's losses draw from torch's own generator: with the same seed, the same tokens
        output = live.apply(batch, generator=torch.default_generator)
        objective = output.objective
        if objective is None:
            objective = output.coefficients * (1.0 + log_prob - log_prob.detach()).masked_fill(~mask, 0.0)
        if rollout_is_weights is not None:
            objective = objective * rollout_is_weights.masked_fill(~mask, 0.0)
        sizes: Mapping[str, Any] = {} if config is None else config.global_batch_info
        value = agg_loss(loss_mat=-objective, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **sizes)
        log_ratio = (log_prob - old_log_prob).detach().clamp(-20.0, 20.0)[mask]
        metrics = {f"actor/{PREFIX}{name}": number for name, number in output.metrics.items()}
        return value, {"actor/ppo_kl": -float(log_ratio.mean()), **metrics}

    loss.__name__ = loss_name(live, micro_batch_statistics)
    return loss


def loss_name(rule: str | Rule, micro_batch_statistics: bool = False) -> str:
    """The name of a rule's loss in verl's registry, for `actor.policy_loss.loss_mode`.

    Example:
        >>> loss_name("clip-higher(epsilon_high=0.3)"), loss_name("kl-cov", True)
        ('entropy_theory:clip-higher(epsilon_high=0.3)', 'entropy_theory:kl-cov@micro-batch')
    """
    return f"{LOSS_PREFIX}{build_rule(rule)}{MICRO_BATCH if micro_batch_statistics else ''}"


def register_loss(rule: str | Rule) -> str:
    """Register a ratio-based rule as a policy loss of verl.

    Args:
        rule: A rule, or its specification; ending in ``@micro-batch``, statistics over the micro-batch are accepted.

    Returns:
        Its name in verl's registry; see `loss_name`.

    Raises:
        ValueError: see `check_live_rule`.
        ImportError: verl is not installed.
    """
    micro_batch = isinstance(rule, str) and rule.endswith(MICRO_BATCH)
    live = build_rule(rule.removesuffix(MICRO_BATCH) if isinstance(rule, str) else rule)
    name = loss_name(live, micro_batch)
    _core_algos().register_policy_loss(name)(policy_loss(live, micro_batch_statistics=micro_batch))
    return name


def _core_algos() -> Any:
    try:
        from verl.trainer.ppo import core_algos
    except ImportError as error:
        raise missing_extra("verl", "verl") from error
    return core_algos
