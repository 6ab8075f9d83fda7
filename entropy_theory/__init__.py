"""What does an RL update do to a language model's entropy, and how is collapse prevented?

The names here are the public surface. Importing this package loads NumPy only; SciPy, SymPy and torch load when a
name that needs them is first used.

Example:
    >>> import numpy as np
    >>> import entropy_theory as et
    >>> logits = np.array([2.0, 1.0, 0.0, -1.0])
    >>> bool(et.centered_discriminant(logits, token=0) > 0)  # reinforcing the likely token lowers entropy ...
    True
    >>> direction = et.grpo_direction(logits, token=0)
    >>> bool(et.entropy_change(logits, 0.01 * direction) < 0)  # ... and it does
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from entropy_theory.theory.categorical import entropy, entropy_change, log_softmax
from entropy_theory.theory.curvature import second_order_change
from entropy_theory.theory.discriminant import (
    baseline,
    centered_discriminant,
    discriminant,
    first_order_change,
    grpo_direction,
)
from entropy_theory.theory.finite_steps import step_bound
from entropy_theory.theory.single_logit import discriminant_bounds, sign_flip_radius, single_logit_entropy_change

if TYPE_CHECKING:
    from entropy_theory.control.lens import lens
    from entropy_theory.control.registry import rule
    from entropy_theory.theory.verification import verify

__version__ = "0.1.0"

_LAZY = {
    "lens": "entropy_theory.control.lens",
    "rule": "entropy_theory.control.registry",
    "verify": "entropy_theory.theory.verification",
}

__all__ = [
    "baseline",
    "centered_discriminant",
    "discriminant",
    "discriminant_bounds",
    "entropy",
    "entropy_change",
    "first_order_change",
    "grpo_direction",
    "lens",
    "log_softmax",
    "rule",
    "second_order_change",
    "sign_flip_radius",
    "single_logit_entropy_change",
    "step_bound",
    "verify",
]


def __getattr__(name: str) -> object:
    """Load the names that need more than NumPy when they are first asked for."""
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
