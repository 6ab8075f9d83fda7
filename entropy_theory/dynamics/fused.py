"""A step of a bank of policies in compiled loops: what lies between the kernels and torch."""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.control import Reducer, Rule
from entropy_theory.control.group_advantages import STD_OFFSET
from entropy_theory.control.rules.clip_bv import ClipB, selected_advantages
from entropy_theory.control.rules.none import NoControl
from entropy_theory.dynamics import bank, grpo
from entropy_theory.dynamics.config import SimulationConfig
from entropy_theory.dynamics.draws import Draw
from entropy_theory.dynamics.kernels import layout, room, steps, whole_steps
from entropy_theory.dynamics.policies import Observer, Reading, reading_of, show_blocks
from entropy_theory.vocab.kernels.threads import share

Logits = NDArray[np.float64] | NDArray[np.float32]
Mask = NDArray[np.bool_]

_SIGNS = torch.tensor([[-1.0, 0.0, 1.0]])

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
        self._rooms: dict[int, room.Room] = {}
        self._likeliest = np.empty(rows, np.int64)
        self._probs, self._excess, self._advantages = (np.empty((rows, group)) for _ in range(3))
        self._tokens, self._dropped = np.empty((rows, group), np.int64), np.empty(rows, np.int64)
        self._squares = np.empty(rows)

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
            draw = self._draw(step, part)
            steps.read_policies(z[part], right[part], draw, *self._advantage, self._room(), *own, sums.numpy()[part])

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

    def takes(self, rule: Rule) -> bool:
        """No control, and Clip_B by its threshold; see `policies.WholeSteps`."""
        if type(rule) is ClipB:  # another source of log p is the same policy, but S would be rebuilt from it
            return rule.drop_fraction is None and rule.log_probs_source in ("auto", "current")
        return type(rule) is NoControl

    def step(
        self, logits: Tensor, correct: Tensor, step: int, rule: Rule, reducer: Reducer, *, measure: bool
    ) -> tuple[Tensor, float]:
        """Do a whole step; see `policies.WholeSteps`. Clip_B takes three sweeps, the second over the samples alone."""
        z, right, config = logits.numpy(), correct.numpy(), self.config
        if not isinstance(rule, ClipB):
            self._unmodified(z, right, step, measure)
            return torch.from_numpy(self._records), 0.0
        self._score(z, right, step)
        count, mean, std = self._moments(reducer)
        lost = int(reducer.sum(torch.tensor(self._drop(*rule.limits(mean, std), rule))).item())
        counted = count if rule.denominator == "valid" else count - lost
        scale = grpo.scale_of(config.step_size, counted, config.policies)
        update = grpo.Update(torch.from_numpy(self._advantages), scale, None, {})
        changes = self.move(logits, torch.from_numpy(self._tokens), update, step + 1, measure=measure)
        if changes is not None:
            self._records[:3] = torch.stack(changes).numpy()
        return torch.from_numpy(self._records), lost / count

    def _unmodified(self, z: Logits, right: Mask, step: int, measure: bool) -> None:
        config, records = self.config, self._records
        # of the whole bank, as `grpo.decide` has it: the same ratio of fewer policies may round otherwise
        scale = grpo.scale_of(config.step_size, config.policies * config.group_size, config.policies)

        def run(part: slice) -> None:
            whole_steps.unmodified_steps(
                *(z[part], right[part], self._draw(step, part), config.group_size, scale, *self._advantage),
                *(self._room(), bank.FAR, measure, part.start, records),
            )

        share(run, len(z), self._turn())

    def _score(self, z: Logits, right: Mask, step: int) -> None:
        arrays = [self._tokens, self._likeliest, self._states, self._probs, self._excess]
        arrays += [self._advantages, self._squares]

        def run(part: slice) -> None:
            own = [array[part] for array in arrays]
            draw = self._draw(step, part)
            where = self._room(), *own, part.start, self._records
            whole_steps.score_groups(z[part], right[part], draw, *self._advantage, *where)

        share(run, len(z), self._turn())

    def _moments(self, reducer: Reducer) -> tuple[int, float, float]:
        """Count, mean and deviation of S over the samples of all ranks, from those of each group."""
        group, means = self.config.group_size, self._records[layout.RECORD_OF_S]
        policies, total = reducer.sum(torch.tensor([len(means), float(means.sum())], dtype=torch.float64)).tolist()
        mean = total / policies
        squares = float(self._squares.sum() + group * np.square(means - mean).sum())
        count = int(policies) * group
        return count, mean, math.sqrt(reducer.sum(torch.tensor(squares, dtype=torch.float64)).item() / count)

    def _drop(self, origin: float, threshold: float, rule: ClipB) -> int:
        may_go = [bool(chosen) for chosen in selected_advantages(_SIGNS, rule.advantages)[0]]
        how = origin, threshold, {"lower": -1, "both": 0, "upper": 1}[rule.side], *may_go
        arrays = self._probs, self._excess
        changed = self._advantages, self._dropped

        def run(part: slice) -> None:
            scores, left = ([array[part] for array in arrays] for arrays in (arrays, changed))
            whole_steps.drop_outliers(*scores, *how, *left)

        share(run, len(self._dropped), self._turn())
        return int(self._dropped.sum())

    def _draw(self, step: int, part: slice) -> tuple[int, int, int, int]:
        return self.config.seed, int(Draw.TOKENS), step, self.share.start + part.start

    def _room(self) -> room.Room:
        """The calling thread's own; fresh pages would cost more than what is done in them."""
        own = self._rooms.get(threading.get_ident())
        if own is None:
            own = self._rooms[threading.get_ident()] = room.room_for(self.config.vocab_size, self.config.group_size)
        return own

    def _turn(self) -> int:
        if len(self.share) * self.config.vocab_size <= bank.SMALL:  # less than a millisecond: see `bank.threads_for`
            return len(self.share)
        even = -(-len(self.share) // (TURNS * torch.get_num_threads()))
        size = self.config.vocab_size
        return max(1, LEAST_TURN // size, min(even, LARGEST_TURN // size))
