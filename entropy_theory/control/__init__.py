"""Entropy-control rules: per-token statistics in, per-token gradient coefficients out.

Importing this package registers every rule.

Example:
    >>> "ppo-clip" in rule_names()
    True
"""

import entropy_theory.control.rules  # noqa: F401  registers the rules
from entropy_theory.control.base import Pipe, Rule
from entropy_theory.control.batch import TokenBatch
from entropy_theory.control.denominators import aggregate
from entropy_theory.control.flow import Context, Flow, RuleOutput
from entropy_theory.control.lens import LensTable, lens
from entropy_theory.control.reducers import DistributedReducer, LocalReducer, Reducer
from entropy_theory.control.registry import register, rule, rule_class, rule_names

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
