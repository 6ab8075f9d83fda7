"""GRPO on a bank of softmax policies, from one frozen configuration: the theory's world, watched step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_theory import records
from entropy_theory.control import rule as build_rule
from entropy_theory.dynamics import bank, grpo, results
from entropy_theory.dynamics.engine import Simulation
from entropy_theory.dynamics.results import SimulationResult
from entropy_theory.errors import invalid

Progress = Callable[[int, int, str], None]
Initialisation = Literal["gaussian", "forking"]
Dtype = Literal["float64", "float32"]

REPORT_EVERY = 10


@dataclass(frozen=True)
class SimulationConfig:
    """GRPO on a bank of independent softmax policies, with predicted beside realised change of entropy.

    Every policy has its own right answers, rewarded with 1. At each step it samples a group of tokens, compares their
    rewards, and moves its logits by the policy gradient as the rule leaves it. Examples:

      entropy-theory simulate toy
      entropy-theory simulate toy --rule "clip-b(mu=1)" --out runs/toy-clip-b
      entropy-theory simulate toy --iterations 2 --rule ppo-clip --out runs/toy-ppo

    Attributes:
        policies: Number of policies.
        vocab_size: Tokens per policy.
        steps: Sampled batches, one group per policy each.
        group_size: Samples per policy and batch.
        iterations: Updates per batch; from the second on the importance ratios differ from 1.
        step_size: Step of the logits, for a loss that is a mean over the group.
        rule: Entropy-control rule, such as clip-b, "clip-b(mu=1)", ppo-clip or none.
        initialisation: Where the policies start; gaussian: independent normal logits; forking: half of the policies
            nearly certain and a fifth above .67 nats, as the positions of a language model.
        logit_scale: Standard deviation of gaussian initial logits.
        correct_share: Share of the vocabulary that is right, drawn for each policy.
        advantage: Divide by the group's standard deviation as GRPO does (std), or only subtract its mean (mean).
        record_every: Record every k-th step; the last is always recorded.
        pairs: At most so many single policies are kept for the scatter of predicted and realised change.
        checkpoint_every: Steps between checkpoints; a run that was killed goes on from the last one and ends with the
            same numbers.
        block_elements: Logits handled at once, which bounds memory; the default fits the cache. The result does not
            depend on it.
        dtype: What the logits are stored in; all arithmetic is float64.
        device: Device of the policies, such as cpu or cuda.
        seed: Seed of policies, right answers, samples and random rules.
        out: Folder of the run.
    """

    policies: int = 1000
    vocab_size: int = 100
    steps: int = 1000
    group_size: int = 16
    iterations: int = 1
    step_size: float = 0.1
    rule: str = "none"
    initialisation: Initialisation = "gaussian"
    logit_scale: float = 1.0
    correct_share: float = 0.1
    advantage: grpo.Normalisation = "std"
    record_every: int = 1
    pairs: int = 4096
    checkpoint_every: int = 200
    block_elements: int = 1 << 15
    dtype: Dtype = "float64"
    device: str = "cpu"
    seed: int = 0
    out: Path = Path("runs/simulate-toy")

    def __post_init__(self) -> None:
        """Refuse values that no run can use; write equal configurations alike."""
        least = {"vocab_size": 2, "group_size": 2, "pairs": 0, "seed": 0}
        for name in (
            *("policies", "vocab_size", "steps", "group_size", "iterations", "record_every", "pairs"),
            *("checkpoint_every", "block_elements", "seed"),
        ):
            value, low = getattr(self, name), least.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise invalid(name, f"an integer >= {low}", repr(value))
        self._number("step_size", "a finite number > 0", lambda x: x > 0)
        self._number("logit_scale", "a finite number >= 0", lambda x: x >= 0)
        self._number("correct_share", "a number > 0 and < 1", lambda x: 0 < x < 1)
        for name, choices in (
            ("initialisation", get_args(Initialisation)),
            ("advantage", get_args(grpo.Normalisation)),
            ("dtype", get_args(Dtype)),
        ):
            if getattr(self, name) not in choices:
                raise invalid(name, f"one of {', '.join(choices)}", repr(getattr(self, name)))
        if self.initialisation == "forking" and self.vocab_size < 4:
            raise invalid("vocab_size", "an integer >= 4 for initialisation forking", self.vocab_size)
        rule = build_rule(self.rule)
        missing = [need for need in rule.needs if need not in grpo.AVAILABLE]
        if missing:
            raise invalid("rule", f"one that does without {', '.join(missing)}, which a bank has not", str(rule))
        object.__setattr__(self, "rule", str(rule))
        object.__setattr__(self, "out", Path(self.out))
        _check_device(self.device)

    def _number(self, name: str, expected: str, good: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and good(value)
        if not right:
            raise invalid(name, expected, repr(value))
        object.__setattr__(self, name, float(value))

    def initial_logits(self) -> Float[Tensor, "B V"]:
        """Draw the policies to start from, (policies, vocab_size), float64.

        Example:
            >>> SimulationConfig(policies=2, vocab_size=3).initial_logits().shape
            torch.Size([2, 3])
        """
        if self.initialisation == "forking":
            return bank.forking_logits(self.policies, self.vocab_size, self.seed)
        return bank.gaussian_logits(self.policies, self.vocab_size, self.logit_scale, self.seed)


def simulate(config: SimulationConfig, progress: Progress | None = None) -> SimulationResult:
    """Simulate in memory: nothing is read or written.

    GRPO in the theory's own world, section A of the theory notes: one position per policy, its logits the parameters.
    At each step and iteration, for every policy,

        δz = (η/n) Σ_j g_j (e_{k_j} − p),

    k_j ~ p the group's tokens, g_j what the rule makes of r_j A_j, n the group size (for a rule that takes tokens out
    of the token mean, that mean's count divided by the number of policies).

    Args:
        config: The run.
        progress: Called with (steps done, steps in all, a word on entropy and reward).

    Returns:
        The records: the same for the same configuration and device, whatever `block_elements`.

    Raises:
        ValueError: The rule refuses the batch.

    Example:
        >>> result = simulate(SimulationConfig(policies=50, vocab_size=20, steps=100, step_size=0.5))
        >>> result.summary["entropy_last"] < result.summary["entropy_first"]
        True
        >>> 0.9 < result.summary["slope"] < 1.1
        True
    """
    simulation = Simulation(config)
    return SimulationResult.of(simulation, _advance(simulation, 0.0, progress, None))


def run(config: SimulationConfig, progress: Progress | None = None) -> SimulationResult:
    """Simulate into the run's folder: finished runs are read back, killed ones go on from their checkpoint.

    The folder holds config.json, environment.json, checkpoint.safetensors (the last state, atomically replaced) and at
    the end steps.npz, pairs.npz and result.json. A resumed run ends with the very arrays of an undisturbed one.

    Args:
        config: The run; `checkpoint_every` and `block_elements` may differ from those it was started with.
        progress: As for `simulate`.

    Raises:
        ValueError: The folder holds another run, another process works in it, its checkpoint is broken, or the rule
            refuses the batch or remembers something that a checkpoint cannot hold.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = SimulationConfig(policies=4, vocab_size=5, steps=3, out=Path(folder) / "run")
        ...     once, again = run(config), run(config)
        >>> once.summary == again.summary
        True
    """
    with records.exclusive(config.out):
        if records.open_run(config.out, config, ignore=results.UNHASHED):
            return SimulationResult.load(config.out, config)
        simulation = Simulation(config)
        checkpoint = config.out / results.CHECKPOINT
        seconds = results.load_checkpoint(checkpoint, simulation) if checkpoint.exists() else 0.0
        seconds = _advance(simulation, seconds, progress, checkpoint)
        result = SimulationResult.of(simulation, seconds)
        result.save(config.out)
        return result


def _advance(simulation: Simulation, seconds: float, progress: Progress | None, checkpoint: Path | None) -> float:
    """Do the steps that are left; return the seconds of all steps."""
    config = simulation.config
    start = time.perf_counter() - seconds
    with bank.threads_for(min(config.block_elements, config.policies * config.vocab_size)):
        while simulation.completed < config.steps:
            simulation.step()
            done = simulation.completed
            last = done == config.steps
            if checkpoint is not None and (last or done % config.checkpoint_every == 0):
                results.save_checkpoint(checkpoint, simulation, time.perf_counter() - start)
            if progress is not None and (last or done % REPORT_EVERY == 0):
                progress(done, config.steps, _word(simulation))
    return time.perf_counter() - start


def _word(simulation: Simulation) -> str:
    entropy = simulation.columns["entropy_after"]
    reached = ~torch.from_numpy(entropy).isnan().numpy()
    if not reached.any():
        return ""
    return f"entropy {entropy[reached][-1]:.3f}, reward {simulation.columns['reward'][reached][-1]:.2f}"


def _check_device(device: object) -> None:
    try:
        kind = torch.device(device).type if isinstance(device, str) else None
    except RuntimeError:
        kind = None
    if kind not in ("cpu", "cuda"):
        raise invalid("device", "cpu or cuda, with a number if need be", repr(device))
    if kind == "cuda" and not torch.cuda.is_available():
        raise invalid("device", "a device of this machine", f"{device!r}, but CUDA is not available")
