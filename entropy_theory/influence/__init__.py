"""Shared parameters: which token of a step moves mean entropy, and by how much; and the ledger of a run's entropy."""

from entropy_theory.influence.model_view import entropy_gradient
from entropy_theory.influence.step_batch import StepBatch
from entropy_theory.influence.token_influence import Influence, tangent_statistics, token_influence

__all__ = ["Influence", "StepBatch", "entropy_gradient", "tangent_statistics", "token_influence"]
