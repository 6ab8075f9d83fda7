"""Token statistics on the CPU in one read of the logits, on all cores.

The loops are in `cpu_loops`; here is what lies between them and torch: a flat view of the storage, so that any
strides are read where they are as long as a row is contiguous, and the turns that `threads` take.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from entropy_theory.vocab.accumulators import empty
from entropy_theory.vocab.kernels import cpu_loops
from entropy_theory.vocab.kernels.threads import share

# How a dtype is handed to the kernels: as the numbers themselves, or as 16-bit patterns that they widen.
_PATTERNS = {torch.bfloat16: np.dtype(np.uint16), torch.float16: np.dtype(np.int16)}
_SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Logits a thread takes at a time: long against the 20 µs that a turn costs, short enough to share rows evenly.
TURN_ELEMENTS = 1 << 20


def accumulate(logits: Tensor, temperature: float, second_order: bool, into: Tensor | None = None) -> Tensor:
    """Compute the accumulators of every row of logits; see `kernels`."""
    vocab_size = logits.shape[-1]
    rows = logits.shape[:-1].numel()
    sums = empty(rows, second_order) if into is None else into
    if rows == 0:
        return sums
    storage, offsets = _rows(logits)
    data, constants = _array(storage), cpu_loops.exponent_constants(_real(logits), temperature)
    bits, out = storage.view(_SIGNED[storage.element_size()]).numpy(), sums.numpy()
    block = cpu_loops.block_size(storage.element_size())

    def run(part: slice) -> None:
        cpu_loops.accumulate(data, bits, offsets[part], vocab_size, block, constants, temperature, out[part])

    share(run, rows, max(1, TURN_ELEMENTS // vocab_size))
    return sums


def gradient(logits: Tensor, temperature: float, top: Tensor, level: Tensor, slope: Tensor) -> Tensor:
    """Compute e^{x/T} (level + slope · x), x = z − top, for every logit; see `kernels`."""
    vocab_size = logits.shape[-1]
    rows = logits.shape[:-1].numel()
    result = torch.empty(logits.shape, dtype=logits.dtype)
    if rows == 0:
        return result
    storage, offsets = _rows(logits)
    data, out = _array(storage), _array(result.view(-1)).reshape(rows, vocab_size)
    constants = cpu_loops.exponent_constants(_real(logits), temperature)
    tops, levels, slopes = (part.contiguous().numpy() for part in (top, level, slope))

    def run(part: slice) -> None:
        cpu_loops.write_gradient(
            data, offsets[part], vocab_size, constants, tops[part], levels[part], slopes[part], out[part]
        )

    share(run, rows, max(1, TURN_ELEMENTS // vocab_size))
    return result


def _real(logits: Tensor) -> np.dtype:
    return np.dtype(np.float64 if logits.dtype == torch.float64 else np.float32)


def _array(flat: Tensor) -> np.ndarray:
    """View a flat tensor as the array that the kernels read."""
    if flat.dtype in _PATTERNS:
        return flat.view(torch.int16).numpy().view(_PATTERNS[flat.dtype])
    return flat.numpy()


def _rows(logits: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return the memory that holds the logits, flat, and where each row starts; no copy if rows are contiguous."""
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    offsets = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(logits.shape[:-1], logits.stride()[:-1], strict=True):
        offsets = offsets[..., None] + torch.arange(size) * stride
    offsets = offsets.reshape(-1)
    return logits.as_strided((int(offsets.max()) + logits.shape[-1],), (1,)), offsets.numpy()
