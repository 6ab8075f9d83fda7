"""What a simulation leaves: its result, and the checkpoint from which a killed run resumes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from entropy_theory import records
from entropy_theory.dynamics.engine import COLUMNS, Simulation
from entropy_theory.dynamics.fits import slope_through_origin
from entropy_theory.dynamics.ranks import collect
from entropy_theory.errors import invalid, reading

if TYPE_CHECKING:
    from entropy_theory.dynamics.config import SimulationConfig

CHECKPOINT = "checkpoint.safetensors"
STEPS = "steps.npz"
PAIRS = "pairs.npz"
RESULT = "result.json"
FORMAT = "entropy_theory.Simulation/2"
UNHASHED = ("out", "checkpoint_every", "block_elements", "logits")
"""Fields of the configuration that do not change the result: a run may be resumed with others. Of a file of saved
logits its content counts, not where it lies."""

_PAIR_COLUMNS = ("step", "iteration", "policy", "predicted", "realised")


@dataclass(frozen=True, eq=False)
class SimulationResult:
    """The records of a simulation.

    Attributes:
        config: The run.
        steps: One array per column, one entry per update of a recorded step, float64; entropies in nats, all of them
            means over the policies:

            - ``step``, ``iteration``: which update, both from 0;
            - ``entropy_before``, ``entropy_after``: H before the update and after it;
            - ``realised_change``: ΔH, exact (section B.3 of the theory notes);
            - ``predicted_change``: its first order for the move taken, −Σ S_i δz_i (section B.1); for the optimizer sgd
              that is −(η/n) Σ_j g_j S_c,j (Theorem 3.3);
            - ``absolute_error``, ``relative_error``: mean |realised − predicted|, and that over mean |realised|;
            - ``second_order_change``: the next order, ½ H''(δz) (section B.6), to be added to the first;
            - ``second_order_error``: mean |realised − predicted − second order|;
            - ``reward``: of the sampled tokens;
            - ``discriminant``, ``centered_discriminant``: S and S_c of the sampled tokens;
            - ``quadrant_q1`` to ``quadrant_q4``: shares of the tokens by sign of A and S_c, of all tokens;
            - ``dropped_share``: the share of the tokens that the rule dropped;
            - ``ratio_deviation``: mean |r − 1|, 0 in the first iteration.
        pairs: A seeded sample of single policies at single updates: arrays ``step``, ``iteration``, ``policy``,
            ``predicted``, ``realised`` of one length, in the order of the updates.
        summary: Numbers for a table; see `summarise`.

    Example:
        >>> from entropy_theory.dynamics import SimulationConfig, simulate
        >>> result = simulate(SimulationConfig(policies=10, vocab_size=5, steps=4, pairs=7))
        >>> result.steps["entropy_after"].shape, result.pairs["predicted"].shape
        ((4,), (7,))
    """

    config: SimulationConfig
    steps: dict[str, NDArray[np.float64]]
    pairs: dict[str, NDArray[Any]]
    summary: dict[str, float]

    @classmethod
    def of(cls, simulation: Simulation, seconds: float) -> SimulationResult:
        """Gather the result of a finished simulation.

        Args:
            simulation: All its steps are done.
            seconds: What they took.
        """
        steps = dict(simulation.columns)
        row = simulation.pairs["row"]
        pairs: dict[str, NDArray[Any]] = {
            "step": steps["step"][row].astype(np.int64),
            "iteration": steps["iteration"][row].astype(np.int64),
            "policy": simulation.pairs["policy"],
            "predicted": simulation.pairs["predicted"],
            "realised": simulation.pairs["realised"],
        }
        return cls(simulation.config, steps, pairs, summarise(simulation.config, steps, pairs, seconds))

    def save(self, folder: Path) -> None:
        """Write steps.npz, pairs.npz and, last, result.json; each whole or not at all."""
        _save_arrays(folder / STEPS, self.steps)
        _save_arrays(folder / PAIRS, self.pairs)
        content = {
            "hash": digest(self.config),
            "configuration": records.to_data(self.config),
            "environment": records.environment(),
            "summary": self.summary,
        }
        records.write_json(folder / RESULT, content)

    @classmethod
    def load(cls, folder: Path, config: SimulationConfig) -> SimulationResult:
        """Read what `save` wrote.

        Args:
            folder: The run's folder.
            config: The run's configuration, which its hash must match.

        Raises:
            ValueError: A file is missing, broken or of another configuration.
        """
        content = records.read_record(folder / RESULT, "hash", "summary")
        if content["hash"] != digest(config):
            raise invalid("folder", "the result of this configuration", folder)
        steps, pairs = _load_arrays(folder / STEPS, COLUMNS), _load_arrays(folder / PAIRS, _PAIR_COLUMNS)
        return cls(config, steps, pairs, content["summary"])


def digest(config: SimulationConfig) -> str:
    """Hash what decides a result: the configuration without UNHASHED, and the version of the package.

    Example:
        >>> from entropy_theory.dynamics import SimulationConfig
        >>> digest(SimulationConfig(checkpoint_every=1)) == digest(SimulationConfig())
        True
    """
    return records.configuration_hash(config, ignore=UNHASHED)


def summarise(
    config: SimulationConfig, steps: dict[str, NDArray[np.float64]], pairs: dict[str, NDArray[Any]], seconds: float
) -> dict[str, float]:
    """Reduce a run to the numbers of a table.

    Returns:
        ``entropy_first``, ``entropy_last``: mean H before the first and after the last update; ``reward_first``,
        ``reward_last``; ``dropped_share``, ``quadrant_q1`` to ``quadrant_q4``: means over the recorded updates;
        ``relative_error``: mean |realised − predicted| over mean |realised|, over the recorded updates;
        ``second_order_relative_error``: the same with the second order in the prediction; ``slope``,
        ``slope_error``: realised on predicted through the origin over the pairs, with its standard error; NaN is
        never among them, a slope without pairs is left out; ``seconds`` and ``policy_steps_per_second`` (updates of
        one policy).
    """
    numbers = {
        "entropy_first": steps["entropy_before"][0],
        "entropy_last": steps["entropy_after"][-1],
        "reward_first": steps["reward"][0],
        "reward_last": steps["reward"][-1],
        "dropped_share": steps["dropped_share"].mean(),
    }
    numbers |= {f"quadrant_q{q}": steps[f"quadrant_q{q}"].mean() for q in (1, 2, 3, 4)}
    # mean |realised| of an update is its absolute error over its relative one
    relative = steps["relative_error"]
    sizes = np.divide(steps["absolute_error"], relative, out=np.abs(steps["realised_change"]), where=relative > 0)
    total = sizes.sum()
    numbers["relative_error"] = steps["absolute_error"].sum() / total if total else 0.0
    numbers["second_order_relative_error"] = steps["second_order_error"].sum() / total if total else 0.0
    if np.any(pairs["predicted"]):
        numbers["slope"], numbers["slope_error"] = slope_through_origin(pairs["predicted"], pairs["realised"])
    numbers["seconds"] = round(seconds, 3)
    numbers["policy_steps_per_second"] = round(config.policies * config.steps * config.iterations / max(seconds, 1e-9))
    return {name: float(value) for name, value in numbers.items()}


def save_checkpoint(path: Path, simulation: Simulation, seconds: float) -> None:
    """Write the state of a simulation, whole or not at all: that of all ranks, by the first of them.

    Args:
        path: The file.
        simulation: The state.
        seconds: What its steps took so far.

    Raises:
        ValueError: The rule remembers something that JSON cannot hold.

    Example:
        >>> import tempfile
        >>> from entropy_theory.dynamics import SimulationConfig
        >>> config = SimulationConfig(policies=3, vocab_size=4, steps=9)
        >>> simulation, resumed = Simulation(config), Simulation(config)
        >>> simulation.step()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(Path(folder) / "c.safetensors", simulation, seconds=0.5)
        ...     load_checkpoint(Path(folder) / "c.safetensors", resumed)
        0.5
        >>> resumed.completed, bool((simulation.logits == resumed.logits).all())
        (1, True)
    """
    try:
        state = json.dumps(simulation.rule_state, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise invalid("rule", "a rule whose state JSON can hold", f"{simulation.rule} ({error})") from None
    tensors = {}
    for name, values in _by_policy(simulation).items():
        whole = collect(values, simulation.config.policies, simulation.reducer)
        if whole is not None:
            tensors[name] = whole
    if simulation.reducer.rank != 0:
        return
    tensors |= {f"column.{name}": torch.from_numpy(values) for name, values in simulation.columns.items()}
    tensors |= {f"pair.{name}": torch.from_numpy(simulation.pairs[name]) for name in ("predicted", "realised")}
    metadata = {
        "format": FORMAT,
        "hash": digest(simulation.config),
        "impl": simulation.impl,
        "completed": str(simulation.completed),
        "seconds": repr(seconds),
        "rule_state": state,
    }
    metadata["sha256"] = records.array_digest({name: values.numpy() for name, values in tensors.items()}, metadata)
    with records.written_whole(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_checkpoint(path: Path, simulation: Simulation) -> float:
    """Put a fresh simulation into the state of a checkpoint, which any number of ranks may have written.

    Args:
        path: The checkpoint.
        simulation: A simulation of the same configuration; it is changed.

    Returns:
        The seconds that the steps so far took.

    Raises:
        ValueError: The file is not a checkpoint, or not one of this configuration and implementation.
    """
    expected = "a whole checkpoint of this configuration; delete it to start over"
    with reading(str(path), expected, path.name), safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    found = metadata.pop("sha256", None)
    if found != records.array_digest({name: values.numpy() for name, values in tensors.items()}, metadata):
        raise invalid(str(path), expected, f"digest {found}, which is not that of its content")
    for name in _by_policy(simulation):
        if name in tensors and len(tensors[name]) == simulation.config.policies:
            tensors[name] = tensors[name][simulation.share.start : simulation.share.stop]
    if metadata.get("format") != FORMAT or metadata.get("hash") != digest(simulation.config):
        raise invalid(str(path), expected, f"format {metadata.get('format')}, hash {metadata.get('hash')}")
    if metadata.get("impl") != simulation.impl:  # it would go on with other last bits
        raise invalid(str(path), f"a checkpoint of the implementation {simulation.impl!r}", repr(metadata.get("impl")))
    targets = {f"column.{name}": torch.from_numpy(values) for name, values in simulation.columns.items()}
    targets |= {f"pair.{name}": torch.from_numpy(simulation.pairs[name]) for name in ("predicted", "realised")}
    targets |= _by_policy(simulation)
    for name, target in targets.items():
        saved = tensors.get(name)
        if saved is None or saved.shape != target.shape or saved.dtype != target.dtype:
            raise invalid(str(path), expected, f"{name} missing or of another shape")
        target.copy_(saved)
    simulation.completed = int(metadata["completed"])
    simulation.rule_state = json.loads(metadata["rule_state"])
    return float(metadata["seconds"])


def _by_policy(simulation: Simulation) -> dict[str, torch.Tensor]:
    """The tensors of a state that have a row per policy."""
    moments = simulation.moments
    adam = {} if moments is None else {"adam.first": moments.first, "adam.second": moments.second}
    return {"logits": simulation.logits, **adam}


def _save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with records.written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _load_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    with reading(str(path), f"the arrays {', '.join(names)}", path.name), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names}
