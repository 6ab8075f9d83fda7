"""The statements of the theory, the evidence for each, and the run that gathers it."""

from entropy_theory.theory.verification.run import Report, verify

__all__ = ["Report", "verify"]
