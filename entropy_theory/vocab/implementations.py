"""Which implementations of the token statistics there are, and which one runs where."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from entropy_theory.errors import invalid, missing_extra

Implementation = Literal["auto", "eager", "fused-cpu", "triton"]

SMALL = 1 << 20
"""Below this many logits the milliseconds saved do not pay for loading the compiled loops."""

HAS_TRITON = importlib.util.find_spec("triton") is not None

_MODULES = {"eager": "eager", "fused-cpu": "fused_cpu", "triton": "fused_triton"}
_FUSED_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose_implementation(logits: Tensor) -> tuple[str, str]:
    """Say which implementation ``impl="auto"`` takes for these logits, and why.

    Args:
        logits: z, shape (..., V).

    Returns:
        The name and the reason.

    Example:
        >>> import torch
        >>> choose_implementation(torch.zeros(2, 5))
        ('eager', '10 logits: too few to pay for loading the compiled loops')
    """
    return choose_for(logits.device, logits.dtype, logits.numel())


def choose_for(device: torch.device, dtype: torch.dtype, count: int) -> tuple[str, str]:
    """Choose for logits that need not exist yet: ``count`` of them of this type, there."""
    if device.type == "cuda":
        reason = _cannot_run("triton", device, dtype)
        return ("triton", "one read of the logits on the GPU") if reason is None else ("eager", str(reason))
    reason = _cannot_run("fused-cpu", device, dtype)
    if reason is not None:
        return "eager", str(reason)
    if count < SMALL:
        return "eager", f"{count} logits: too few to pay for loading the compiled loops"
    return "fused-cpu", "one read of the logits on the CPU"


def resolve(impl: str, device: torch.device, dtype: torch.dtype, count: int) -> str:
    """Return the name of the implementation to run; a request that cannot run fails with the reason.

    Where ``auto`` would take the compiled loops and Numba cannot be loaded, torch takes their place, with a warning.

    Raises:
        ValueError: The name is unknown, or not for this device or type.
        ImportError: The implementation needs a package that cannot be loaded.
    """
    if impl not in get_args(Implementation):
        raise invalid("impl", f"one of {', '.join(get_args(Implementation))}", repr(impl))
    name = choose_for(device, dtype, count)[0] if impl == "auto" else impl
    reason = _cannot_run(name, device, dtype)
    if reason is not None:
        raise reason
    if name != "fused-cpu":
        return name
    return loadable(impl, name, "Numba", _module(name), "token statistics run")


def loadable(impl: str, name: str, compiler: str, module: str, what_runs: str) -> str:
    """Return the name of an implementation that can be loaded; instead of one that ``auto`` chose, torch's, and warn.

    Args:
        impl: What was asked for.
        name: What that comes to.
        compiler: What it needs.
        module: Its module.
        what_runs: For the warning.

    Raises:
        ImportError: An implementation that was asked for cannot be loaded.

    Example:
        >>> loadable("auto", "fused-cpu", "Numba", "entropy_theory.vocab.kernels.eager", "the tests run")
        'fused-cpu'
    """
    problem = loading_problem(module)
    if problem is None:
        return name
    if impl != "auto":
        raise ImportError(f"impl: expected {compiler} for {impl!r}, received {problem}")
    warnings.warn(f"{what_runs} on torch, several times slower: {compiler} cannot be loaded ({problem})", stacklevel=3)
    return "eager"


def loading_problem(module: str) -> str | None:
    """Say why a module of compiled loops cannot be loaded; None if it can.

    Example:
        >>> loading_problem("entropy_theory.vocab.kernels.eager") is None
        True
    """
    return _import_problem(module)


# An import has no graph. This is what `torch.compiler.assume_constant_result` does, but that loads the compiler first,
# which takes as long as torch itself.
loading_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _import_problem(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a compiler that misses a library of its own raises OSError, one too old anything
        return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
    return None


def kernels(name: str) -> ModuleType:
    """Load an implementation; see `kernels` for its two functions."""
    return importlib.import_module(_module(name))


def _module(name: str) -> str:
    return f"entropy_theory.vocab.kernels.{_MODULES[name]}"


def _cannot_run(name: str, device: torch.device, dtype: torch.dtype) -> Exception | None:
    """Return why an implementation cannot take such logits, as the error to raise."""
    if name == "fused-cpu":
        if device.type != "cpu":
            return invalid("impl", f"an implementation for {device.type}", repr(name))
        if dtype not in _FUSED_CPU_DTYPES:
            return invalid("impl", f"an implementation for {dtype}", repr(name))
    elif name == "triton":
        if not HAS_TRITON:
            return missing_extra("triton", "gpu")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return invalid("impl", f"an implementation for {device.type}", repr(name))
        if dtype not in _TRITON_DTYPES:
            return invalid("impl", f"an implementation for {dtype}", repr(name))
    return None
