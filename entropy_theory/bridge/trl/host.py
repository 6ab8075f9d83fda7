"""What entropy control reads of the trainer that it controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from entropy_theory.control.denominators import Divisor


class HostTrainer(Protocol):
    """TRL's trainer as the scorer and the losses see it.

    The first names are TRL's own. The mixin adds the others for what TRL keeps under private names, the cores for what
    differs between TRL's trainers.
    """

    model: Any
    args: Any
    accelerator: Any
    state: Any
    temperature: float
    current_gradient_accumulation_steps: int
    beta: float
    router_aux_loss_coef: float
    batches_folder: Path
    reads_token_advantages: bool

    @property
    def micro_step(self) -> int:
        """Micro-batches trained on since training began."""
        ...

    @property
    def micro_batches(self) -> list[dict[str, Any]]:
        """The micro-batches of the current generation batch."""
        ...

    @property
    def accumulation(self) -> int:
        """The micro-batches of an optimizer step that the loss is divided by in TRL's loss itself."""
        ...

    @property
    def loss_divisor(self) -> Divisor:
        """What the loss divides by: all tokens, those of each sequence, or a constant."""
        ...

    def reduce_loss(self, per_token: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Reduce a loss per token, (B, T), as the trainer's own loss does."""
        ...

    def loss_of_coefficients(self, coefficients: Tensor, log_probs: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The trainer's own loss with a coefficient per token; where it cannot read advantages (B, T)."""
        ...

    def log_metrics(self, values: dict[str, float]) -> None:
        """Log numbers of the optimizer step, under the prefix of this package."""
        ...
