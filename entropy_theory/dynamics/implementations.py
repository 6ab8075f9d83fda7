"""Which implementations of a simulation's step there are, and which one runs where.

"eager" is a chain of torch operations over blocks of policies: the readable one, for any device and optimizer.
"fused-cpu" does a policy's whole step in compiled loops while its logits are in the cache, "triton" in one program of a
GPU. They sample the same tokens and differ in the last bits of what they compute.

No GPU has run "triton" yet, so it has to be asked for: it is checked in Triton's interpreter, and compiles for sm_90.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

from entropy_theory.dynamics.config import SimulationConfig
from entropy_theory.errors import invalid
from entropy_theory.vocab.implementations import loadable

Implementation = Literal["auto", "eager", "fused-cpu", "triton"]

SMALL = 1 << 24
"""Below this many logits, over all updates of a run, the second saved does not pay for the one that loading the
compiled loops takes. They are compiled when a machine first needs them, for each dtype, in ten to twenty seconds on a
slow one."""


LARGEST_GROUP = 64
"""Samples per policy that a program of a GPU takes: it compares every one with every other."""

_COMPILERS = {"fused-cpu": ("Numba", "steps"), "triton": ("Triton", "triton_steps")}


def choose_implementation(config: SimulationConfig) -> tuple[str, str]:
    """Say which implementation ``impl="auto"`` takes for a run, and why.

    The choice depends on the configuration alone, so that a run that was killed resumes with the same one; where Numba
    cannot be loaded any more, its checkpoint is refused.

    Returns:
        The name and the reason.

    Example:
        >>> choose_implementation(SimulationConfig(optimizer="adam"))
        ('eager', 'optimizer adam: the compiled steps take sgd')
        >>> choose_implementation(SimulationConfig())[0]
        'fused-cpu'
    """
    if config.device.startswith("cuda"):
        return "eager", f"device {config.device}: no GPU has run 'triton' yet"
    reason = _cannot_run("fused-cpu", config)
    if reason is not None:
        return "eager", reason
    count = config.policies * config.vocab_size * config.steps * config.iterations
    if count < SMALL:
        return "eager", f"{count} logits over the run: too few to pay for loading the compiled loops"
    return "fused-cpu", "a policy's whole step while its logits are in the cache"


def resolve(impl: str, config: SimulationConfig) -> str:
    """Return the name of the implementation to run; a request that cannot run fails with the reason.

    Where ``auto`` would take the compiled loops and Numba cannot be loaded, torch takes their place, with a warning.

    Raises:
        ValueError: The name is unknown, or not for this configuration.
        ImportError: Numba or Triton cannot be loaded.
    """
    if impl not in get_args(Implementation):
        raise invalid("impl", f"one of {', '.join(get_args(Implementation))}", repr(impl))
    name = choose_implementation(config)[0] if impl == "auto" else impl
    if name == "eager":
        return name
    reason = _cannot_run(name, config)
    if reason is not None:
        raise invalid("impl", "an implementation for this configuration", f"{impl!r} ({reason})")
    compiler, module = _COMPILERS[name]
    return loadable(impl, name, compiler, f"entropy_theory.dynamics.kernels.{module}", "the simulation runs")


def _cannot_run(name: str, config: SimulationConfig) -> str | None:
    """Return why compiled code cannot take a configuration."""
    on_cpu = config.device.startswith("cpu")
    if name == "fused-cpu" and not on_cpu:
        return f"device {config.device}: the compiled loops are for the CPU"
    if name == "triton" and on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        return f"device {config.device}: Triton is for NVIDIA GPUs"
    if config.optimizer != "sgd":
        return f"optimizer {config.optimizer}: the compiled steps take sgd"
    if name == "triton" and config.group_size > LARGEST_GROUP:
        return f"group_size {config.group_size}: Triton takes at most {LARGEST_GROUP}"
    return None
