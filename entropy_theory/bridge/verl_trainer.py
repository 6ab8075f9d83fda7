"""The documented name of `entropy_theory.bridge.verl.trainer`; importing it registers trainers, engine and losses."""

from entropy_theory.bridge.verl.trainer import (
    EntropyControlledTrainerColocateAsync,
    EntropyControlledTrainerSeparateAsync,
    EntropyControlledTrainerSync,
    EntropyControlMixin,
    StatisticsEngine,
    check_verl_version,
    register_losses,
)

__all__ = [
    "EntropyControlMixin",
    "EntropyControlledTrainerColocateAsync",
    "EntropyControlledTrainerSeparateAsync",
    "EntropyControlledTrainerSync",
    "StatisticsEngine",
    "check_verl_version",
    "register_losses",
]
