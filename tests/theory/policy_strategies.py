"""Hypothesis strategies for logits that reach the corners."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# Multiples of 2^-30 below 2^15: sums and differences of a few of them are exact in float64, so a law that holds for
# real numbers can be asked for without an allowance for rounded inputs.
GRID = 2.0**-30


def on_grid(values: np.ndarray) -> np.ndarray:
    return np.round(values / GRID) * GRID


@st.composite
def logits_rows(draw, *, offsets=True, impossible=True, max_scale=300.0):
    """One policy, shape (V,): nearly uniform to nearly one-hot, −inf entries, offsets of ±10⁴."""
    vocab_size = draw(st.sampled_from([2, 3, 5, 17, 128]))
    scale = draw(st.sampled_from([s for s in (0.0, 1e-6, 0.1, 1.0, 5.0, 30.0, 300.0) if s <= max_scale]))
    unit = draw(hnp.arrays(np.float64, vocab_size, elements=st.floats(-1.0, 1.0, allow_subnormal=False)))
    rows = on_grid(unit * scale)
    if offsets:
        rows = rows + draw(st.sampled_from([0.0, 0.0, 1e4, -1e4]))
    if impossible and draw(st.integers(0, 3)) == 0:
        hidden = draw(hnp.arrays(np.bool_, vocab_size))
        hidden[draw(st.integers(0, vocab_size - 1))] = False
        rows = np.where(hidden, -np.inf, rows)
    return rows


@st.composite
def logits_and_token(draw, **options):
    rows = draw(logits_rows(**options))
    return rows, draw(st.integers(0, len(rows) - 1))


@st.composite
def logits_and_move(draw, **options):
    """A policy and a move of its logits, shapes (V,) and (V,), with steps from 1e-8 to 30."""
    rows = draw(logits_rows(**options))
    scale = draw(st.sampled_from([1e-8, 1e-4, 1.0, 30.0]))
    unit = draw(hnp.arrays(np.float64, len(rows), elements=st.floats(-1.0, 1.0, allow_subnormal=False)))
    return rows, on_grid(unit * scale)
