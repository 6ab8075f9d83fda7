"""Shared parameters: which token of a step moves mean entropy, and by how much; and the ledger of a run's entropy."""

from entropy_theory.influence.step_batch import StepBatch

__all__ = ["StepBatch"]
