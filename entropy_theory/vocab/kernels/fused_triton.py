"""Token statistics on an NVIDIA GPU in one read of the logits, and their gradient in one read and one write.

A program reads its part of a row in blocks. Every thread keeps sums of its own, which meet once, at the end, in
float64. Moving the sums to a higher maximum and leaving out the exact maxima are rare: both stand in branches that all
threads take together, so the usual block pays for neither. Rows are read through their strides, without a copy, for any
view with up to two leading dimensions.
"""

from __future__ import annotations

import math
import os
from typing import Any, no_type_check

import torch
from torch import Tensor

from entropy_theory.errors import missing_extra
from entropy_theory.vocab.accumulators import D2, FIRST, Q2, Q3, columns, merge

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise missing_extra("triton", "gpu") from error

# Logits per step of a program, and its warps: 16 logits and 4 sums of 16 lanes per thread.
BLOCK = 2048
WARPS = 4
# Programs that fill the device; fewer rows than that are read in several parts.
PROGRAMS = 512

# Lower x/T cannot reach the result: e^{−200} is zero in float32. As a bound it keeps 0 · −inf out of the sums.
_LOWEST = tl.constexpr(-200.0)


@triton.jit
@no_type_check
def _row_offset(row, inner_rows, outer_stride, inner_stride):
    return (row // inner_rows).to(tl.int64) * outer_stride + (row % inner_rows).to(tl.int64) * inner_stride


@triton.jit
@no_type_check
def _absorb(z, top, shift, count, total, first, p2, q2, d2, p3, q3, scale, lowest, SECOND: tl.constexpr):
    """Add one block of logits to the sums; ``scale`` is log₂(e)/T."""
    block_top = tl.max(z, 0)
    if block_top > top:
        if top > -float("inf"):
            step = block_top - top
            w = tl.exp2(-step * scale)
            step = tl.minimum(step, -lowest)  # beyond it w is zero
            share = (
                count / z.shape[0]
            )  # the old maxima become ordinary tokens, of x = 0; a power of two divides exactly
            total += share
            p2 += share
            if SECOND:
                p3 += share
                d2 = w * w * (d2 - 2.0 * step * q2 + step * step * p2)
                q3 = w * w * w * (q3 - step * p3)
                p3 = w * w * w * p3
            first = w * (first - step * total)
            total = w * total
            q2 = w * w * (q2 - step * p2)
            p2 = w * w * p2
        count = 0.0
        top = block_top
        shift = block_top
    x = z - shift
    e = tl.exp2(x * scale)
    if block_top == top:
        at_top = z == top
        count += tl.sum(tl.where(at_top, 1.0, 0.0), 0)
        e = tl.where(at_top, 0.0, e)
    x = tl.maximum(x, lowest)
    squared = e * e
    total += e
    first += e * x
    p2 += squared
    q2 += squared * x
    if SECOND:
        cubed = squared * e
        d2 += squared * x * x
        p3 += cubed
        q3 += cubed * x
    return top, shift, count, total, first, p2, q2, d2, p3, q3


@triton.jit
@no_type_check
def accumulate_kernel(
    logits,
    sums,
    rows,
    inner_rows,
    outer_stride,
    inner_stride,
    vocab_size,
    part_size,
    temperature,
    log2_e_over_temperature,
    SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the accumulators of one part of one row; see ``accumulators``."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    base = logits + _row_offset(row, inner_rows, outer_stride, inner_stride)
    lanes = tl.arange(0, BLOCK)
    lowest = _LOWEST * temperature
    first_token = part * part_size
    stop = tl.minimum(first_token + part_size, vocab_size)

    top = -float("inf")
    # Sums are relative to ``shift``: the maximum, or 0 as long as no finite logit was seen.
    shift = 0.0
    count = 0.0
    total = tl.zeros([BLOCK], tl.float32)
    first = tl.zeros([BLOCK], tl.float32)
    p2 = tl.zeros([BLOCK], tl.float32)
    q2 = tl.zeros([BLOCK], tl.float32)
    d2 = tl.zeros([BLOCK], tl.float32)
    p3 = tl.zeros([BLOCK], tl.float32)
    q3 = tl.zeros([BLOCK], tl.float32)

    # Full blocks without a mask; what is left of the last one, with.
    last = first_token + (stop - first_token) // BLOCK * BLOCK
    for start in range(first_token, last, BLOCK):
        z = tl.load(base + start + lanes).to(tl.float32)
        top, shift, count, total, first, p2, q2, d2, p3, q3 = _absorb(
            z, top, shift, count, total, first, p2, q2, d2, p3, q3, log2_e_over_temperature, lowest, SECOND
        )
    if last < stop:
        z = tl.load(base + last + lanes, mask=last + lanes < stop, other=-float("inf")).to(tl.float32)
        top, shift, count, total, first, p2, q2, d2, p3, q3 = _absorb(
            z, top, shift, count, total, first, p2, q2, d2, p3, q3, log2_e_over_temperature, lowest, SECOND
        )

    total_sum = tl.sum(total.to(tl.float64), 0)
    broken = (total_sum != total_sum) | (top == float("inf"))  # a NaN logit is in the sum of its lane
    out = sums + (part.to(tl.int64) * rows + row) * (9 if SECOND else 6)
    nothing = top == -float("inf")
    n = tl.where(nothing, 0.0, count)
    tl.store(out, tl.where(broken, float("nan"), top).to(tl.float64))
    tl.store(out + 1, n.to(tl.float64))
    tl.store(out + 2, total_sum)
    tl.store(out + 3, tl.sum(first.to(tl.float64), 0))
    tl.store(out + 4, tl.sum(p2.to(tl.float64), 0))
    tl.store(out + 5, tl.sum(q2.to(tl.float64), 0))
    if SECOND:
        tl.store(out + 6, tl.sum(d2.to(tl.float64), 0))
        tl.store(out + 7, tl.sum(p3.to(tl.float64), 0))
        tl.store(out + 8, tl.sum(q3.to(tl.float64), 0))


@triton.jit
@no_type_check
def gradient_kernel(
    logits,
    out,
    tops,
    levels,
    slopes,
    inner_rows,
    outer_stride,
    inner_stride,
    vocab_size,
    temperature,
    log2_e_over_temperature,
    BLOCK: tl.constexpr,
):
    """Write e^{x/T} (level + slope · x), x = z − max z, for one block of one row."""
    row = tl.program_id(0)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = tokens < vocab_size
    base = logits + _row_offset(row, inner_rows, outer_stride, inner_stride)
    z = tl.load(base + tokens, mask=mask, other=0.0).to(tl.float32)
    x = z - tl.load(tops + row)
    e = tl.exp2(x * log2_e_over_temperature)
    x = tl.maximum(x, _LOWEST * temperature)
    value = e * (tl.load(levels + row) + tl.load(slopes + row) * x)
    tl.store(out + row.to(tl.int64) * vocab_size + tokens, value.to(out.dtype.element_ty), mask=mask)


def accumulate(logits: Tensor, temperature: float, second_order: bool, into: Tensor | None = None) -> Tensor:
    """Compute the accumulators of every row of logits; see `kernels`."""
    logits, inner_rows, strides = _rows(logits)
    rows, vocab_size = logits.shape[:-1].numel(), logits.shape[-1]
    steps = -(-vocab_size // BLOCK)
    parts = max(1, min(steps, PROGRAMS // max(rows, 1)))
    part_size = -(-steps // parts) * BLOCK
    parts = -(-vocab_size // part_size)
    sums = torch.empty(parts, rows, columns(second_order), dtype=torch.float64, device=logits.device)
    if rows:
        with _device(logits):
            accumulate_kernel[(rows, parts)](
                logits,
                sums,
                rows,
                inner_rows,
                *strides,
                vocab_size,
                part_size,
                temperature,
                math.log2(math.e) / temperature,
                SECOND=second_order,
                BLOCK=BLOCK,
                num_warps=WARPS,
            )
    if temperature != 1:  # from sums over x to sums over d = x/T
        for column, power in ((FIRST, 1), (Q2, 1), (D2, 2), (Q3, 1)):
            if column < sums.shape[-1]:
                sums[..., column] /= temperature**power
    if into is not None:
        sums = torch.cat([into[None], sums])
    return sums[0] if len(sums) == 1 else merge(sums, temperature)


def gradient(logits: Tensor, temperature: float, top: Tensor, level: Tensor, slope: Tensor) -> Tensor:
    """Compute e^{x/T} (level + slope · x), x = z − top, for every logit; see `kernels`."""
    shape = logits.shape
    logits, inner_rows, strides = _rows(logits)
    rows, vocab_size = shape[:-1].numel(), shape[-1]
    out = torch.empty(shape, dtype=logits.dtype, device=logits.device)
    if rows:
        with _device(logits):
            gradient_kernel[(rows, -(-vocab_size // BLOCK))](
                logits,
                out,
                *(part.float().contiguous() for part in (top, level, slope)),
                inner_rows,
                *strides,
                vocab_size,
                temperature,
                math.log2(math.e) / temperature,
                BLOCK=BLOCK,
                num_warps=WARPS,
            )
    return out


def _rows(logits: Tensor) -> tuple[Tensor, int, tuple[int, int]]:
    """View the logits with two leading dimensions: the inner one's size and the strides of both."""
    leading = logits.shape[:-1]
    if logits.stride(-1) != 1 or len(leading) > 2:
        logits = logits.reshape(-1, leading[-1] if leading else 1, logits.shape[-1])
        logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    if len(leading) < 2 and logits.ndim < 3:
        return logits, 1, (logits.stride(0) if leading else 0, 0)
    return logits, logits.shape[-2], (logits.stride(-3), logits.stride(-2))


def _device(logits: Tensor) -> Any:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and not logits.is_cuda
    return (
        torch.autograd.profiler.record_function("token_statistics") if interpreted else torch.cuda.device(logits.device)
    )
