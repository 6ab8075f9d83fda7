"""The state of a simulation and its one move: sample a batch, update on it, record what happened."""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_theory.control import Reducer
from entropy_theory.control import rule as build_rule
from entropy_theory.control.reducers import LOCAL
from entropy_theory.dynamics import bank, grpo, implementations, starts
from entropy_theory.dynamics.draws import Draw, distinct_places, generator
from entropy_theory.dynamics.eager import EagerPolicies
from entropy_theory.dynamics.optimizers import AdamMoments
from entropy_theory.dynamics.policies import Observer, Policies, WholeSteps
from entropy_theory.dynamics.ranks import share_of
from entropy_theory.errors import invalid

if TYPE_CHECKING:
    from entropy_theory.dynamics.config import SimulationConfig

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
        impl: Which implementation takes the steps, "eager", "fused-cpu" or "triton"; "auto" chooses
            (`implementations`).

    Attributes:
        impl: The implementation that was chosen.
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

    def __init__(
        self, config: SimulationConfig, reducer: Reducer = LOCAL, *, impl: implementations.Implementation = "auto"
    ) -> None:
        self.config, self.reducer = config, reducer
        self.impl = implementations.resolve(impl, config)
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
        self._fused: WholeSteps | None = None
        if self.impl == "fused-cpu":
            from entropy_theory.dynamics.fused import FusedPolicies

            self._fused = FusedPolicies(config, self.share)
        elif self.impl == "triton":
            from entropy_theory.dynamics.fused_triton import TritonPolicies

            self._fused = TritonPolicies(config, self.share, device)
        self._policies: Policies = self._fused or EagerPolicies(config, self.share, self.moments)

    @torch.no_grad()
    def step(self, observe: Observer | None = None) -> None:
        """Sample a batch from the present policies and update on it; the outcome is in `logits` and `columns`.

        Args:
            observe: Sees each block of policies and the tokens sampled from it.
        """
        config, number = self.config, self.completed
        place = bisect.bisect_left(self.recorded_steps, number)
        recorded = place < len(self.recorded_steps) and self.recorded_steps[place] == number
        whole = config.iterations == 1 and observe is None
        if whole and self._fused is not None and self._fused.takes(self.rule):
            self._step_whole(self._fused, place if recorded else None)
        else:
            self._step_by_rule(observe, place if recorded else None)
        self.completed += 1

    def _step_whole(self, policies: WholeSteps, place: int | None) -> None:
        """Do a step that the policies can do by themselves."""
        batch = self.logits, self.correct, self.completed
        values, dropped_share = policies.step(*batch, self.rule, self.reducer, measure=place is not None)
        self._check_entropy(values[3], at_start=self.completed == 0)
        if place is not None:
            self._record(place, 0, values, {"dropped_share": dropped_share})

    def _step_by_rule(self, observe: Observer | None, place: int | None) -> None:
        """Do a step in two sweeps for each of its updates: scores, then, once the rule has seen all, moves."""
        config, number = self.config, self.completed
        samples: grpo.GroupSamples | None = None
        first: grpo.Update | None = None
        for iteration in range(config.iterations):
            squares = "sum_squared_discriminant" in self.rule.needs
            known = None if samples is None else samples.tokens
            observer = observe if samples is None else None
            reading = self._policies.read(self.logits, self.correct, number, known, observer, squares)
            self._check_entropy(reading.policies["entropy"], at_start=number == iteration == 0)
            if reading.rewards is not None and reading.advantages is not None:
                entropy, log_probs = reading.policies["entropy"], reading.scores.log_probs
                samples = grpo.GroupSamples(reading.tokens, reading.rewards, reading.advantages, log_probs, entropy)
            assert samples is not None
            with bank.threads_for(0):  # threads would round the rule's statistics by their number
                update = grpo.decide(
                    self.rule,
                    samples,
                    reading.scores,
                    reading.policies,
                    step_size=config.step_size,
                    generator=generator(config.seed, Draw.RULE, number, iteration),
                    state=self.rule_state,
                    earlier=first,
                    reducer=self.reducer,
                )
            if first is None or self.rule.phase == "live":
                self.rule_state = update.state
            first = first or update
            count = number * config.iterations + iteration + 1
            changes = self._policies.move(self.logits, samples.tokens, update, count, measure=place is not None)
            if place is not None and changes is not None:
                with bank.threads_for(0):
                    rewards = samples.rewards.mean(dim=-1)
                    deviation = torch.zeros_like(rewards)
                    if iteration > 0:
                        deviation = (reading.scores.log_probs - samples.log_probs).expm1_().abs_().mean(dim=-1)
                columns = [*changes, reading.policies["entropy"], rewards, *reading.means, deviation]
                by_policy = torch.stack(columns)
                self._record(place * config.iterations + iteration, iteration, by_policy, update.metrics)

    def _record(self, row: int, iteration: int, by_policy: Tensor, metrics: dict[str, float]) -> None:
        """Write down an update.

        Args:
            row: Its place in the columns.
            iteration: Its number on the batch.
            by_policy: Of this rank's policies ΔH, its first and second order, H, the means of R, S, S_c and |r − 1|
                over the group, and the numbers of tokens in the quadrants where `metrics` has not their shares.
            metrics: Of all policies.
        """
        # Every rank sees all policies and takes the same sums of them, so that their bits do not depend on the shares.
        # They are NumPy's: torch would split them over threads and round by their number.
        gathered = by_policy.cpu().numpy()
        if self.reducer.world_size > 1:
            flat = self.reducer.gather(by_policy.cpu().T.reshape(-1))
            gathered = flat.view(-1, len(by_policy)).T.contiguous().numpy()
        realised, predicted, second = gathered[:3]
        error = realised - predicted
        sizes = np.abs([error, error - second, realised])
        totals = [float(total) for values in (gathered, sizes) for total in values.sum(axis=1)]
        change, first_order, second_order, before, *tokens = (total / len(realised) for total in totals[:8])
        absolute, remainder, size = (total / len(realised) for total in totals[-3:])
        drawn = len(realised) * self.config.group_size
        metrics = metrics | {f"quadrant_share_q{q}": count / drawn for q, count in enumerate(totals[8:-3], start=1)}
        values = {
            "step": self.completed,
            "iteration": iteration,
            "entropy_before": before,
            "entropy_after": before + change,
            "realised_change": change,
            "predicted_change": first_order,
            "absolute_error": absolute,
            "relative_error": absolute / size if size else 0.0,
            "second_order_change": second_order,
            "second_order_error": remainder,
            **dict(zip(("reward", "discriminant", "centered_discriminant", "ratio_deviation"), tokens, strict=True)),
            **{f"quadrant_q{q}": metrics[f"quadrant_share_q{q}"] for q in (1, 2, 3, 4)},
            "dropped_share": metrics["dropped_share"],
        }
        for name, value in values.items():
            if not math.isfinite(value):
                raise self._out_of_range(f"{name} {value}")
            self.columns[name][row] = value
        chosen = slice(*np.searchsorted(self.pairs["row"], (row, row + 1)))
        policy = self.pairs["policy"][chosen].astype(np.int64)
        self.pairs["predicted"][chosen] = predicted[policy]
        self.pairs["realised"][chosen] = realised[policy]

    def _check_entropy(self, entropy: Tensor, *, at_start: bool) -> None:
        if math.isfinite(float(entropy.sum())):  # each is then, as none is negative; to look at each takes longer
            return
        if at_start:
            raise invalid("logits", f"numbers in the range of {self.config.dtype}", "NaN or infinite entropies")
        raise self._out_of_range("NaN or infinite entropies")

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
            places = distinct_places(total, config.pairs, source)
        empty = np.full(places.size, np.nan)
        return {
            "row": places // config.policies,
            "policy": places % config.policies,
            "predicted": empty,
            "realised": empty.copy(),
        }
