"""A step of a bank of policies in compiled loops: what lies between `kernels.steps` and torch."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from entropy_theory.control.group_advantages import STD_OFFSET
from entropy_theory.dynamics import bank, grpo
from entropy_theory.dynamics.config import SimulationConfig
from entropy_theory.dynamics.draws import Draw
from entropy_theory.dynamics.kernels import layout, steps
from entropy_theory.dynamics.policies import Observer, Reading, reading_of, show_blocks
from entropy_theory.vocab.kernels.threads import share

LEAST_TURN, LARGEST_TURN, TURNS = 1 << 13, 1 << 20, 8
"""A thread takes some policies at a time: logits enough for tens of microseconds, against the ten that a turn costs,
and not so many that the others wait for the last turn; between these, eight turns for each thread."""


class FusedPolicies:
    """The policies of a simulation, evaluated and moved by compiled loops on all of torch's threads.

    Args:
        config: The run; optimizer sgd, on the CPU.
        share: The places of these policies in the whole bank.
    """

    def __init__(self, config: SimulationConfig, share: range) -> None:
        bank.keep_freed_memory()
        self.config, self.share = config, share
        rows, group = len(share), config.group_size
        self._advantage = config.advantage == "std", STD_OFFSET
        self._states = np.empty((rows, layout.STATE))
        self._records = np.zeros((layout.RECORDS, rows))
        self._rooms: dict[int, steps.Room] = {}
        self._likeliest = np.empty(rows, np.int64)
        self._probs, self._excess = np.empty((rows, group)), np.empty((rows, group))

    def read(
        self, logits: Tensor, correct: Tensor, step: int, tokens: Tensor | None, observe: Observer | None, squares: bool
    ) -> Reading:
        """Evaluate the policies; without tokens, also sample and reward. See `policies.Policies`."""
        z, right, shape = logits.numpy(), correct.numpy(), (len(self.share), self.config.group_size)
        k = torch.empty(shape, dtype=torch.int64) if tokens is None else tokens
        log_probs, S, S_c = (torch.empty(shape, dtype=torch.float64) for _ in range(3))
        sums = torch.empty(shape[0] if squares else 0, dtype=torch.float64)
        drawn = shape[0], shape[1] if tokens is None else 0
        rewards, advantages = (torch.empty(drawn, dtype=torch.float64) for _ in range(2))
        arrays = [rewards.numpy(), advantages.numpy(), k.numpy(), self._likeliest, self._states, self._probs]
        arrays += [self._excess, log_probs.numpy(), S.numpy(), S_c.numpy()]

        def run(part: slice) -> None:
            own = [array[part] for array in arrays]
            draw, room = self._draw(step, part), self._room()
            steps.read_policies(z[part], right[part], draw, *self._advantage, room, *own, sums.numpy()[part])

        share(run, shape[0], self._turn())
        if observe is not None:
            show_blocks(observe, logits, k, self.config.block_elements)
        scores, sampled = bank.TokenScores(log_probs, S, S_c), (rewards, advantages) if tokens is None else ()
        return reading_of(k, scores, torch.from_numpy(self._states), sums if squares else None, sampled)

    def move(
        self, logits: Tensor, tokens: Tensor, update: grpo.Update, count: int, *, measure: bool
    ) -> tuple[Tensor, ...] | None:
        """Move the logits and measure what that does; see `policies.Policies`."""
        z, k = logits.numpy(), tokens.numpy()
        scaled = (update.coefficients.double() * update.scale).contiguous().numpy()
        bonus = np.zeros(len(z))
        if update.entropy_coefficients is not None:
            bonus = (update.entropy_coefficients.double() * update.scale).contiguous().numpy()
        changes = np.empty((len(z), 3))
        arrays = [k, scaled, bonus, self._likeliest, self._states, self._probs, self._excess]

        def run(part: slice) -> None:
            own = [array[part] for array in arrays]
            steps.move_policies(z[part], *own, self._room(), bank.FAR, measure, changes[part])

        share(run, len(z), self._turn())
        return torch.from_numpy(changes).unbind(-1) if measure else None

    def step_unmodified(self, logits: Tensor, correct: Tensor, step: int, *, measure: bool) -> Tensor:
        """Do a whole step in one sweep over the policies; see `policies.WholeSteps`."""
        config, z, right, records = self.config, logits.numpy(), correct.numpy(), self._records
        # of the whole bank, as `grpo.decide` has it: the same ratio of fewer policies may round otherwise
        scale = grpo.scale_of(config.step_size, config.policies * config.group_size, config.policies)

        def run(part: slice) -> None:
            steps.unmodified_steps(
                *(z[part], right[part], self._draw(step, part), config.group_size, scale, *self._advantage),
                *(self._room(), bank.FAR, measure, part.start, records),
            )

        share(run, len(z), self._turn())
        return torch.from_numpy(records)

    def _draw(self, step: int, part: slice) -> tuple[int, int, int, int]:
        return self.config.seed, int(Draw.TOKENS), step, self.share.start + part.start

    def _room(self) -> steps.Room:
        """The calling thread's own; fresh pages would cost more than what is done in them."""
        room = self._rooms.get(threading.get_ident())
        if room is None:
            room = self._rooms[threading.get_ident()] = steps.room_for(self.config.vocab_size, self.config.group_size)
        return room

    def _turn(self) -> int:
        if len(self.share) * self.config.vocab_size <= bank.SMALL:  # less than a millisecond: see `bank.threads_for`
            return len(self.share)
        even = -(-len(self.share) // (TURNS * torch.get_num_threads()))
        size = self.config.vocab_size
        return max(1, LEAST_TURN // size, min(even, LARGEST_TURN // size))
