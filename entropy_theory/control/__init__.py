"""Entropy-control rules: per-token statistics in, per-token gradient coefficients out.

Importing this package registers every rule.

Example:
    >>> "ppo-clip" in rule_names()
    True
"""

from entropy_theory.control import (  # noqa: F401  (registers)
    advantages,
    budget,
    coefficients,
    covariance,
    discriminator_clipping,
    entropy_masks,
    random_mask,
    ratio_clipping,
    reweighting,
    surrogates,
)
from entropy_theory.control.flow import Context, Flow, RuleOutput, aggregate
from entropy_theory.control.lens import LensTable, lens
from entropy_theory.control.reducers import DistributedReducer, LocalReducer, Reducer
from entropy_theory.control.rule import Pipe, Rule, register, rule, rule_class, rule_names
from entropy_theory.control.tokens import TokenBatch

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
