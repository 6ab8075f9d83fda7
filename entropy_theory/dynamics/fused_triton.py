"""A step of a bank of policies on an NVIDIA GPU: what lies between `kernels.triton_steps` and torch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from entropy_theory.control import Reducer, Rule
from entropy_theory.control.group_advantages import STD_OFFSET
from entropy_theory.control.rules.none import NoControl
from entropy_theory.dynamics import bank, grpo
from entropy_theory.dynamics.config import SimulationConfig
from entropy_theory.dynamics.draws import Draw
from entropy_theory.dynamics.kernels import layout
from entropy_theory.dynamics.kernels import triton_steps as steps
from entropy_theory.dynamics.policies import Observer, Reading, reading_of, show_blocks

TILE, TILES = 256, 8
"""Logits in a tile and tiles in a block, at most. A sample costs the tile that it falls into. A thread holds 8 logits
of a block and as many of each of five sums, about as much as its registers take."""

LOGITS_PER_WARP = 256


class TritonPolicies:
    """The policies of a simulation, evaluated and moved by one program each.

    Args:
        config: The run; optimizer sgd, groups of at most `implementations.LARGEST_GROUP`.
        share: The places of these policies in the whole bank.
        device: Where the logits are: a GPU, or the CPU under Triton's interpreter.

    Attributes:
        sizes: What the kernels are compiled for: GROUP, STEPS, TILES and TILE of `kernels.triton_steps`, and num_warps.
    """

    def __init__(self, config: SimulationConfig, share: range, device: torch.device) -> None:
        self.config, self.share, self._device = config, share, device
        rows, group = len(share), config.group_size
        tile = min(TILE, _power_of_two(config.vocab_size))
        tiles = min(TILES, _power_of_two(-(-config.vocab_size // tile)))
        self.sizes = {
            "GROUP": _power_of_two(group),
            "STEPS": _power_of_two(-(-config.vocab_size // (tile * tiles))),
            "TILES": tiles,
            "TILE": tile,
            "num_warps": max(1, tile * tiles // LOGITS_PER_WARP),
        }
        self._advantage = {"DIVIDE": config.advantage == "std", "OFFSET": STD_OFFSET}
        self._scale = self._new(1).fill_(grpo.scale_of(config.step_size, config.policies * group, config.policies))
        self._states, self._records = self._new(rows, layout.STATE), self._new(layout.RECORDS, rows).zero_()
        self._likeliest = torch.empty(rows, dtype=torch.int32, device=device)
        self._probs, self._excess = self._new(rows, group), self._new(rows, group)

    def read(
        self, logits: Tensor, correct: Tensor, step: int, tokens: Tensor | None, observe: Observer | None, squares: bool
    ) -> Reading:
        """Evaluate the policies; without tokens, also sample and reward. See `policies.Policies`."""
        shape = len(self.share), self.config.group_size
        k = torch.empty(shape, dtype=torch.int64, device=self._device) if tokens is None else tokens
        log_probs, S, S_c, rewards, advantages = (self._new(*shape) for _ in range(5))
        sums = self._new(shape[0])
        self._run(
            *(steps.read_kernel, logits, correct.view(torch.uint8), k, rewards, advantages, self._likeliest),
            *(self._states, self._probs, self._excess, log_probs, S, S_c, sums, *self._draw(step)),
            *(self.config.vocab_size, self.config.group_size),
            **(self._advantage | {"SAMPLE": tokens is None, "SQUARES": squares}),
        )
        if observe is not None:
            show_blocks(observe, logits, k, self.config.block_elements)
        scores, sampled = bank.TokenScores(log_probs, S, S_c), (rewards, advantages) if tokens is None else ()
        return reading_of(k, scores, self._states, sums if squares else None, sampled)

    def move(
        self, logits: Tensor, tokens: Tensor, update: grpo.Update, count: int, *, measure: bool
    ) -> tuple[Tensor, ...] | None:
        """Move the logits and measure what that does; see `policies.Policies`."""
        scaled = (update.coefficients.double() * update.scale).contiguous()
        bonus = self._new(len(logits)).zero_()
        if update.entropy_coefficients is not None:
            bonus = (update.entropy_coefficients.double() * update.scale).contiguous()
        changes = self._new(3, len(logits))
        self._run(
            *(steps.move_kernel, logits, tokens, scaled, bonus, self._likeliest, self._states, self._probs),
            *(self._excess, changes, self.config.vocab_size, self.config.group_size),
            MEASURE=measure,
        )
        return changes.unbind(0) if measure else None

    def takes(self, rule: Rule) -> bool:
        """No control; see `policies.WholeSteps`."""
        return type(rule) is NoControl

    def step(
        self, logits: Tensor, correct: Tensor, step: int, rule: Rule, reducer: Reducer, *, measure: bool
    ) -> tuple[Tensor, float]:
        """Do a whole step in one sweep over the policies; see `policies.WholeSteps`."""
        self._run(
            *(steps.step_kernel, logits, correct.view(torch.uint8), self._scale, self._records, *self._draw(step)),
            *(self.config.vocab_size, self.config.group_size),
            **(self._advantage | {"MEASURE": measure}),
        )
        return self._records, 0.0

    def _run(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        here = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
        with here:
            kernel[(len(self.share),)](*arguments, **constants, **self.sizes)

    def _draw(self, step: int) -> tuple[int, int, int]:
        return self.config.seed + (int(Draw.TOKENS) << 32), step, self.share.start

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self._device)


def _power_of_two(size: int) -> int:
    """The power of two from a size upwards."""
    return 1 << (size - 1).bit_length()
