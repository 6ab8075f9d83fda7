"""Shared parameters: which token of a step moves mean entropy, and by how much; and the ledger of a run's entropy."""

from entropy_theory.influence.ledger import BatchEntropy, FirstOrder, Ledger, LedgerEntry, run_summary
from entropy_theory.influence.model_view import entropy_gradient
from entropy_theory.influence.optimizer_steps import (
    StepParts,
    check_optimizer,
    gradient_only_update,
    preconditioner,
    step_parts,
)
from entropy_theory.influence.step_batch import StepBatch
from entropy_theory.influence.token_influence import Influence, tangent_statistics, token_influence

__all__ = [
    "BatchEntropy",
    "FirstOrder",
    "Influence",
    "Ledger",
    "LedgerEntry",
    "StepBatch",
    "StepParts",
    "check_optimizer",
    "entropy_gradient",
    "gradient_only_update",
    "preconditioner",
    "run_summary",
    "step_parts",
    "tangent_statistics",
    "token_influence",
]
