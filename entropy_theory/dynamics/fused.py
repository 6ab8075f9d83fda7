"""A step of a bank of policies in compiled loops: what lies between `kernels.steps` and torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.control.group_advantages import STD_OFFSET
from entropy_theory.dynamics import bank, grpo
from entropy_theory.dynamics.config import SimulationConfig
from entropy_theory.dynamics.draws import Draw
from entropy_theory.dynamics.kernels import policy as layout
from entropy_theory.dynamics.kernels import steps
from entropy_theory.dynamics.policies import Observer, Reading
from entropy_theory.vocab.kernels.threads import share

# Logits a thread takes at a time: between some tens of microseconds, against the ten that a turn costs, and some
# milliseconds; within these, every thread gets several turns, so that none waits for the last one.
LEAST_TURN, LARGEST_TURN, TURNS = 1 << 13, 1 << 20, 4


class FusedPolicies:
    """The policies of a simulation, evaluated and moved by compiled loops on all of torch's threads.

    Args:
        config: The run; optimizer sgd, on the CPU.
        share: The places of these policies in the whole bank.
    """

    def __init__(self, config: SimulationConfig, share: range) -> None:
        self.config, self.share = config, share
        rows, group = len(share), config.group_size
        self._states = np.empty((rows, layout.STATE))
        self._likeliest = np.empty(rows, np.int64)
        self._probs, self._excess = np.empty((rows, group)), np.empty((rows, group))

    def read(
        self, logits: Tensor, step: int, tokens: Tensor | None, observe: Observer | None, *, squares: bool
    ) -> Reading:
        """Evaluate the policies; without tokens, also sample them. See `policies.Policies`."""
        z, shape = logits.numpy(), (len(self.share), self.config.group_size)
        k = torch.empty(shape, dtype=torch.int64) if tokens is None else tokens
        log_probs, S, S_c = (torch.empty(shape, dtype=torch.float64) for _ in range(3))
        sums = torch.empty(shape[0] if squares else 0, dtype=torch.float64)
        arrays = [k.numpy(), self._likeliest, self._states, self._probs, self._excess]
        arrays += [log_probs.numpy(), S.numpy(), S_c.numpy()]

        def run(part: slice) -> None:
            draw = self._draw(step, part)
            own = [array[part] for array in arrays]
            steps.read_policies(z[part], draw, tokens is None, self._room(), *own, sums.numpy()[part])

        share(run, shape[0], self._turn())
        if observe is not None:
            rows = max(1, self.config.block_elements // self.config.vocab_size)
            for start in range(0, shape[0], rows):
                block = slice(start, start + rows)
                observe(block, bank.policy_statistics(logits[block]), k[block])
        policies = {"entropy": self._column(layout.ENTROPY), "baseline": self._column(layout.BASELINE)}
        if squares:
            policies["sum_squared_discriminant"] = sums
        return Reading(k, bank.TokenScores(log_probs, S, S_c), policies)

    def move(
        self, logits: Tensor, tokens: Tensor, update: grpo.Update, count: int, *, measure: bool
    ) -> tuple[Tensor, ...] | None:
        """Move the logits and measure what that does; see `policies.Policies`."""
        z, k = logits.numpy(), tokens.numpy()
        scaled = (update.coefficients * update.scale).numpy()
        bonus = np.zeros(len(z))
        if update.entropy_coefficients is not None:
            bonus = (update.entropy_coefficients * update.scale).numpy()
        changes = np.empty((len(z), 3))
        arrays = [k, scaled, bonus, self._likeliest, self._states, self._probs, self._excess]

        def run(part: slice) -> None:
            own = [array[part] for array in arrays]
            steps.move_policies(z[part], *own, self._room(), bank.FAR, measure, changes[part])

        share(run, len(z), self._turn())
        return torch.from_numpy(changes).unbind(-1) if measure else None

    def step_unmodified(
        self, logits: Tensor, correct: Tensor, step: int, *, measure: bool
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Do a whole step whose gradient no rule modifies, in one sweep over the policies.

        Args:
            logits: z, (B, V); moved.
            correct: Where the reward is 1, (B, V).
            step: The step, which decides the random numbers.
            measure: Whether the changes are asked for; without, three of the records are undefined.

        Returns:
            ΔH, first and second order, H, and the group's means of R, S and S_c, (B, 7); and the number of tokens in
            each quadrant, (4,).
        """
        config, z, right = self.config, logits.numpy(), correct.numpy()
        records, quadrants = np.empty((len(z), 7)), np.empty((len(z), 4), np.int64)
        scale = grpo.scale_of(config.step_size, len(z) * config.group_size, len(z))
        advantage = config.advantage == "std", STD_OFFSET

        def run(part: slice) -> None:
            steps.unmodified_steps(
                *(z[part], right[part], self._draw(step, part), config.group_size, scale, *advantage),
                *(self._room(), bank.FAR, measure, records[part], quadrants[part]),
            )

        share(run, len(z), self._turn())
        return torch.from_numpy(records), quadrants.sum(axis=0)

    def _draw(self, step: int, part: slice) -> tuple[int, int, int, int]:
        return self.config.seed, int(Draw.TOKENS), step, self.share.start + part.start

    def _room(self) -> steps.Room:
        return steps.room_for(self.config.vocab_size, self.config.group_size)

    def _turn(self) -> int:
        even = -(-len(self.share) // (TURNS * torch.get_num_threads()))
        size = self.config.vocab_size
        return max(1, LEAST_TURN // size, min(even, LARGEST_TURN // size))

    def _column(self, which: int) -> Tensor:
        return torch.from_numpy(self._states[:, which].copy())
