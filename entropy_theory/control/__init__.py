"""Entropy-control rules: per-token statistics in, per-token gradient coefficients out.

Importing this package registers every rule.

Example:
    >>> "ppo-clip" in rule_names()
    True
"""

from entropy_theory.control.base import Pipe, Rule, register, rule, rule_class, rule_names
from entropy_theory.control.batch import TokenBatch
from entropy_theory.control.flow import Context, Flow, RuleOutput, aggregate
from entropy_theory.control.lens import LensTable, lens
from entropy_theory.control.reducers import DistributedReducer, LocalReducer, Reducer
from entropy_theory.control.rules import (  # noqa: F401  (registers)
    advantages,
    clip_bv,
    covariance,
    entropy_bonus,
    entropy_budget,
    entropy_masks,
    ppo,
    random_mask,
    reweighting,
    surrogates,
)

__all__ = [
    "Context",
    "DistributedReducer",
    "Flow",
    "LensTable",
    "LocalReducer",
    "Pipe",
    "Reducer",
    "Rule",
    "RuleOutput",
    "TokenBatch",
    "aggregate",
    "lens",
    "register",
    "rule",
    "rule_class",
    "rule_names",
]
