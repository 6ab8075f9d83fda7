"""The state of a simulation and its one move: sample a batch, update on it, record what happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.control import Reducer
from entropy_theory.control import rule as build_rule
from entropy_theory.control.group_advantages import group_advantages
from entropy_theory.control.reducers import LOCAL
from entropy_theory.dynamics import bank, grpo, starts
from entropy_theory.dynamics.draws import Draw, generator
from entropy_theory.dynamics.optimizers import AdamMoments, natural_move
from entropy_theory.dynamics.ranks import share_of
from entropy_theory.errors import invalid

if TYPE_CHECKING:
    from entropy_theory.dynamics.config import SimulationConfig

Observer = Callable[[slice, bank.PolicyStatistics, Tensor], None]
"""Called for each block of policies with its place, statistics and sampled tokens, before the first update on them."""

KEPT_ELEMENTS = 1 << 22
"""Up to so many logits, the policies evaluated for sampling are kept for the update; beyond, evaluated again."""

COLUMNS = (
    "step",
    "iteration",
    "entropy_before",
    "entropy_after",
    "realised_change",
    "predicted_change",
    "absolute_error",
    "relative_error",
    "second_order_change",
    "second_order_error",
    "reward",
    "discriminant",
    "centered_discriminant",
    "quadrant_q1",
    "quadrant_q2",
    "quadrant_q3",
    "quadrant_q4",
    "dropped_share",
    "ratio_deviation",
)
"""What is recorded of every update of a recorded step; `SimulationResult` says what each is."""


class Simulation:
    """A bank of policies in the middle of a run: mutable, and all that a checkpoint must hold.

    `simulate` drives it. Use it directly to look at the policies between steps.

    Args:
        config: The run.
        reducer: The ranks that the policies are divided among; every rank takes the same steps.

    Attributes:
        share: Which policies are this rank's; all of them when it is alone.
        logits: z of this rank's policies, (b, V), in the dtype and on the device of the configuration.
        correct: Where the reward is 1, (b, V).
        moments: What Adam remembers, or None for another optimizer.
        completed: Steps done.
        columns: The records of all ranks' policies, one array per name of COLUMNS, one entry per recorded update; NaN
            where not reached.
        pairs: The subsample of predicted and realised changes of single policies.
        rule_state: What the rule remembers between batches.

    Example:
        >>> from entropy_theory.dynamics import Simulation, SimulationConfig
        >>> simulation = Simulation(SimulationConfig(policies=4, vocab_size=5, steps=2))
        >>> simulation.step()
        >>> simulation.completed, simulation.logits.shape
        (1, torch.Size([4, 5]))
    """

    def __init__(self, config: SimulationConfig, reducer: Reducer = LOCAL) -> None:
        self.config, self.reducer = config, reducer
        self.rule = build_rule(config.rule)
        self.share = share_of(reducer.rank, config.policies, reducer.world_size)
        device = torch.device(config.device)
        if device.type == "cuda" and device.index is None and reducer.world_size > 1:
            device = torch.device("cuda", reducer.rank % torch.cuda.device_count())
        own = len(self.share)
        self.logits = torch.empty(own, config.vocab_size, dtype=getattr(torch, config.dtype), device=device)
        self.correct = torch.empty(own, config.vocab_size, dtype=torch.bool, device=device)
        for start in range(0, own, starts.POLICIES_PER_DRAW):  # never all of them in float64 at once
            part = self.share[start : start + starts.POLICIES_PER_DRAW]
            here = slice(start, start + len(part))
            self.logits[here] = config.initial_logits(part.start, part.stop).to(device)
            size = config.vocab_size
            self.correct[here] = starts.correct_tokens(
                len(part), size, config.correct_share, config.seed, part.start
            ).to(device)
        self.moments = AdamMoments.zeros_like(self.logits) if config.optimizer == "adam" else None
        self.completed = 0
        self.rule_state: Any = None
        self.recorded_steps = sorted({*range(0, config.steps, config.record_every), config.steps - 1})
        updates = len(self.recorded_steps) * config.iterations
        self.columns: dict[str, NDArray[np.float64]] = {name: np.full(updates, np.nan) for name in COLUMNS}
        self.pairs = self._pair_places(updates)
        rows = max(1, config.block_elements // config.vocab_size)
        self._blocks = [slice(start, start + rows) for start in range(0, own, rows)]
        self._kept: list[bank.PolicyStatistics | None] = [None] * len(self._blocks)

    @torch.no_grad()
    def step(self, observe: Observer | None = None) -> None:
        """Sample a batch from the present policies and update on it; the outcome is in `logits` and `columns`.

        Args:
            observe: Sees each block of policies and the tokens sampled from it.
        """
        config, number = self.config, self.completed
        place = int(np.searchsorted(self.recorded_steps, number))
        recorded = place < len(self.recorded_steps) and self.recorded_steps[place] == number
        samples: grpo.GroupSamples | None = None
        first: grpo.Update | None = None
        for iteration in range(config.iterations):
            tokens, scores, policies = self._read(samples, observe)
            if samples is None:
                rewards = self.correct.gather(-1, tokens).double()
                advantages = group_advantages(rewards, config.advantage)
                samples = grpo.GroupSamples(tokens, rewards, advantages, scores.log_probs, policies["entropy"])
            update = grpo.decide(
                self.rule,
                samples,
                scores,
                policies,
                step_size=config.step_size,
                generator=generator(config.seed, Draw.RULE, number, iteration),
                state=self.rule_state,
                earlier=first,
                reducer=self.reducer,
            )
            if first is None or self.rule.phase == "live":
                self.rule_state = update.state
            first = first or update
            changes = self._move(samples, update, iteration, measure=recorded)
            if changes is not None:
                row = place * config.iterations + iteration
                self._record(row, iteration, samples, scores, policies, update, changes)
        self.completed += 1

    def _read(
        self, samples: grpo.GroupSamples | None, observe: Observer | None
    ) -> tuple[Tensor, bank.TokenScores, dict[str, Tensor]]:
        """Evaluate the policies block by block; without samples, also draw them."""
        config = self.config
        if samples is None:
            source = generator(config.seed, Draw.TOKENS, self.completed)
            drawn = torch.rand(config.policies, config.group_size, generator=source, dtype=torch.float64)
            uniforms = drawn[self.share.start : self.share.stop].to(self.logits.device)
        keep = self.logits.numel() <= KEPT_ELEMENTS
        squares = "sum_squared_discriminant" in self.rule.needs
        tokens, scores, entropy, baseline, sums = [], [], [], [], []
        for block, rows in enumerate(self._blocks):
            policy = bank.policy_statistics(self.logits[rows])
            if samples is None:
                tokens.append(bank.sample_tokens(policy.probs, uniforms[rows]))
                if observe is not None:
                    observe(rows, policy, tokens[-1])
            scores.append(policy.at(tokens[-1] if samples is None else samples.tokens[rows]))
            entropy.append(policy.entropy)
            baseline.append(policy.baseline)
            if squares:
                sums.append(policy.sum_squared_discriminant())
            # Replacing the old block only now lets its memory serve the next one: fresh pages cost more than the sums.
            self._kept[block] = policy if keep else None
        policies = {"entropy": torch.cat(entropy), "baseline": torch.cat(baseline)}
        if not bool(torch.isfinite(policies["entropy"]).all()):
            raise self._out_of_range("NaN or infinite entropies")
        if squares:
            policies["sum_squared_discriminant"] = torch.cat(sums)
        return torch.cat(tokens) if samples is None else samples.tokens, bank.TokenScores.cat(scores), policies

    def _move(
        self, samples: grpo.GroupSamples, update: grpo.Update, iteration: int, *, measure: bool
    ) -> tuple[Tensor, ...] | None:
        """Move all logits; return each policy's change of entropy and its first two orders if they are to be measured.

        The orders are those of the move that was taken: after the optimizer, and as the logits' dtype stored it.
        """
        changes = []
        for block, rows in enumerate(self._blocks):
            logits = self.logits[rows]
            policy = self._kept[block] or bank.policy_statistics(logits)
            move = self._move_of(policy, rows, samples, update, iteration)
            if logits.dtype == torch.float64:
                logits += move
            else:
                before = logits.double()
                logits.copy_(before + move)
                move = logits.double() - before
            if measure:
                changes.append(bank.entropy_orders(policy, move))
        return tuple(torch.cat(parts) for parts in zip(*changes, strict=True)) if measure else None

    def _move_of(
        self,
        policy: bank.PolicyStatistics,
        rows: slice,
        samples: grpo.GroupSamples,
        update: grpo.Update,
        iteration: int,
    ) -> Tensor:
        bonus = update.entropy_coefficients
        gradient = samples.tokens[rows], update.coefficients[rows]
        bonus = None if bonus is None else bonus[rows]
        if self.config.optimizer == "natural":
            return natural_move(policy, *gradient, update.scale, bonus)
        if self.moments is None:
            return grpo.move_of_logits(policy, *gradient, update.scale, bonus)
        step_size = self.config.step_size
        return self.moments.move(
            rows,
            grpo.move_of_logits(policy, *gradient, update.scale / step_size, bonus),
            count=self.completed * self.config.iterations + iteration + 1,
            step_size=step_size,
        )

    def _record(
        self,
        row: int,
        iteration: int,
        samples: grpo.GroupSamples,
        scores: bank.TokenScores,
        policies: dict[str, Tensor],
        update: grpo.Update,
        changes: tuple[Tensor, ...],
    ) -> None:
        ratios = (scores.log_probs - samples.log_probs).expm1_().abs_()
        by_policy = [
            *changes,
            policies["entropy"],
            *(x.mean(dim=-1) for x in (samples.rewards, scores.discriminant, scores.centered_discriminant, ratios)),
        ]
        # Every rank sees all policies and takes the same means of them, so that their bits do not depend on the shares.
        # They are NumPy's: torch would split them over threads and round by their number.
        gathered = self.reducer.gather(torch.stack(by_policy, dim=1).cpu().reshape(-1)).view(-1, len(by_policy))
        realised, predicted, second, entropy, *tokens = gathered.T.contiguous().numpy()
        rewards, discriminant, centered, deviation = tokens
        before = float(entropy.mean())
        error = np.abs(realised - predicted)
        size = float(np.abs(realised).mean())
        values = {
            "step": self.completed,
            "iteration": iteration,
            "entropy_before": before,
            "entropy_after": before + float(realised.mean()),
            "realised_change": realised.mean(),
            "predicted_change": predicted.mean(),
            "absolute_error": error.mean(),
            "relative_error": error.mean() / size if size else 0.0,
            "second_order_change": second.mean(),
            "second_order_error": np.abs(realised - predicted - second).mean(),
            "reward": rewards.mean(),
            "discriminant": discriminant.mean(),
            "centered_discriminant": centered.mean(),
            **{f"quadrant_q{q}": update.metrics[f"quadrant_share_q{q}"] for q in (1, 2, 3, 4)},
            "dropped_share": update.metrics["dropped_share"],
            "ratio_deviation": deviation.mean(),
        }
        for name, value in values.items():
            if not np.isfinite(value):
                raise self._out_of_range(f"{name} {value}")
            self.columns[name][row] = value
        chosen = slice(*np.searchsorted(self.pairs["row"], (row, row + 1)))
        policy = self.pairs["policy"][chosen].astype(np.int64)
        self.pairs["predicted"][chosen] = predicted[policy]
        self.pairs["realised"][chosen] = realised[policy]

    def _out_of_range(self, what: str) -> ValueError:
        received = f"{what} after {self.completed} steps of size {self.config.step_size:g}"
        return invalid("step_size", f"steps that keep the logits in the range of {self.config.dtype}", received)

    def _pair_places(self, updates: int) -> dict[str, NDArray[Any]]:
        """Choose beforehand which policies of which updates are kept for the scatter figure."""
        config = self.config
        total = updates * config.policies
        if total <= config.pairs:
            places = np.arange(total)
        else:
            source = generator(config.seed, Draw.PAIRS)
            places = np.sort(torch.randint(total, (config.pairs,), generator=source).numpy())
        empty = np.full(places.size, np.nan)
        return {
            "row": places // config.policies,
            "policy": places % config.policies,
            "predicted": empty,
            "realised": empty.copy(),
        }
