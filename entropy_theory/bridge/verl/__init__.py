"""Entropy control for verl: per-token advantages from its batch; losses and trainers in modules of their own."""

from entropy_theory.bridge.verl.advantages import (
    FunctionReducer,
    RuleAdvantages,
    advantages_under_rule,
    apply_to_batch,
    check_batch_rule,
)

__all__ = ["FunctionReducer", "RuleAdvantages", "advantages_under_rule", "apply_to_batch", "check_batch_rule"]
