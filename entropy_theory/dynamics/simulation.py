"""GRPO on a bank of softmax policies, from one frozen configuration, recorded step by step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

from entropy_theory import records
from entropy_theory.control import Reducer
from entropy_theory.control.reducers import LOCAL
from entropy_theory.dynamics import bank, implementations, results
from entropy_theory.dynamics.config import SimulationConfig
from entropy_theory.dynamics.engine import Simulation
from entropy_theory.dynamics.results import SimulationResult
from entropy_theory.errors import invalid

Progress = Callable[[int, int, str], None]
REPORT_EVERY = 10


def simulate(config: SimulationConfig, progress: Progress | None = None, reducer: Reducer = LOCAL) -> SimulationResult:
    """Simulate in memory: nothing is read or written.

    GRPO in the theory's own world, section A of the theory notes: one position per policy, its logits the parameters.
    At each step and iteration, for every policy,

        δz = (η/n) Σ_j g_j (e_{k_j} − p),

    k_j ~ p the group's tokens, g_j what the rule makes of r_j A_j, n the group size (for a rule that takes tokens out
    of the token mean, that mean's count divided by the number of policies). The optimizers natural and adam make
    another move of the same gradient; the predictions are always those of the move taken.

    Args:
        config: The run.
        progress: Called with (steps done, steps in all, a word on entropy and reward).
        reducer: The ranks that the policies are divided among (`ranks.torchrun_ranks`). Every rank calls this
            and gets the records of all policies. Draws depend on the policy's place alone and means are taken over all
            policies in order, so the records have the same bits for any number of ranks. One exception: a rule that
            compares tokens with a mean or deviation over all of them rounds that by the shares (relative 1e-16), so a
            token that near to a threshold may be decided otherwise, and weights that go by such a sum (entropy-flow,
            entropy-budget, advantage-reweighting) differ in their last bits. Two implementations differ alike.

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
    simulation = Simulation(config, reducer)
    return SimulationResult.of(simulation, _advance(simulation, 0.0, progress, None))


def run(config: SimulationConfig, progress: Progress | None = None, reducer: Reducer = LOCAL) -> SimulationResult:
    """Simulate into the run's folder: finished runs are read back, killed ones resume from their checkpoint.

    The folder holds config.json, environment.json, checkpoint.safetensors (the last state, atomically replaced) and at
    the end steps.npz, pairs.npz and result.json. A resumed run ends with the very arrays of an undisturbed one.

    Args:
        config: The run; `checkpoint_every` and `block_elements` may differ from those it was started with.
        progress: As for `simulate`.
        reducer: As for `simulate`. Rank 0 writes. To resume from a checkpoint, with as many ranks or another
            number, all of them must see the folder.

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
    first = reducer.rank == 0
    opened = records.run_folder(config.out, config, ignore=results.UNHASHED)
    with opened if first else contextlib.nullcontext(False) as finished:
        if int(reducer.sum(torch.tensor(int(finished)))):  # the others wait here until the folder is ready
            return SimulationResult.load(config.out, config)
        simulation = Simulation(config, reducer)
        checkpoint = config.out / results.CHECKPOINT
        seconds = results.load_checkpoint(checkpoint, simulation) if checkpoint.exists() else 0.0
        _check_agreement(simulation)
        seconds = _advance(simulation, seconds, progress if first else None, checkpoint)
        result = SimulationResult.of(simulation, seconds)
        if first:
            result.save(config.out)
        return result


def _check_agreement(simulation: Simulation) -> None:
    """Raise InputError where a rank found another checkpoint, or none, or takes its steps otherwise."""
    names = get_args(implementations.Implementation)
    own = torch.tensor([simulation.completed, names.index(simulation.impl)])
    steps, kinds = simulation.reducer.gather(own).view(-1, 2).T.tolist()
    if len(set(steps)) > 1:
        raise invalid("out", "a folder that every rank sees", f"ranks that resume after {steps} steps")
    if len(set(kinds)) > 1:
        raise invalid("impl", "the same implementation on every rank", ", ".join(names[kind] for kind in kinds))


def _advance(simulation: Simulation, seconds: float, progress: Progress | None, checkpoint: Path | None) -> float:
    """Do the steps that are left; return the seconds of all steps."""
    config = simulation.config
    start = time.perf_counter() - seconds
    small = bank.threads_for(min(config.block_elements, simulation.logits.numel()))
    with small if simulation.impl == "eager" else contextlib.nullcontext():
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
