"""Entropy control for TRL's GRPO and RLOO trainers."""

from entropy_theory.bridge.metrics import PREFIX
from entropy_theory.bridge.trl.compatibility import (
    SUPPORTED_LOSSES,
    SUPPORTED_TRL,
    check_supported,
    check_trl_version,
)
from entropy_theory.bridge.trl.config import EntropyControlledGRPOConfig, EntropyControlledRLOOConfig
from entropy_theory.bridge.trl.trainer import (
    EntropyControlledGRPOTrainer,
    EntropyControlledRLOOTrainer,
    EntropyControlMixin,
    attach,
)

__all__ = [
    "PREFIX",
    "SUPPORTED_LOSSES",
    "SUPPORTED_TRL",
    "EntropyControlMixin",
    "EntropyControlledGRPOConfig",
    "EntropyControlledGRPOTrainer",
    "EntropyControlledRLOOConfig",
    "EntropyControlledRLOOTrainer",
    "attach",
    "check_supported",
    "check_trl_version",
]
