"""Loops over the logits for the CPU, compiled by Numba: one read forward, one read and one write backward.

A row is read in blocks that stay in the first-level cache. A first look at a block finds its extremes on the raw bits
of the numbers, as integers: that vectorises where a floating-point maximum does not, costs nothing for 16-bit logits,
and sees every NaN. What it finds decides which of two loops sums the block. The plain one, for nearly every block,
knows that no logit in it equals the running maximum or is so far below it that e^d leaves the normal numbers. The
careful one leaves out and counts the exact maxima, and masks what is negligible, −inf included.

Block sums run in float32 lanes (float64 for float64 logits) and are added to float64 once per block.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, no_type_check

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

from entropy_theory.vocab.kernels.compiled import LANES, cached, cast, exp

# Exponents below these would leave the normal numbers; e^d is then under 2e-38 (2e-308) and dropped.
_LOWEST_EXPONENT = {np.dtype(np.float32): -125.5, np.dtype(np.float64): -1021.5}

BLOCK_BYTES = 4096
NARROW_BLOCK = 128
"""Logits in a block where vectors have under 512 bits: with half the lanes each adds up twice as many numbers."""


@cache
def block_size(element_size: int) -> int:
    """Logits in a block: as many as keep the errors of its sums near one unit in the last place.

    Example:
        >>> 128 <= block_size(4) <= 1024
        True
    """
    try:
        wide = binding.get_host_cpu_features().get("avx512f", False)
    except RuntimeError:  # LLVM does not know this processor
        wide = False
    return BLOCK_BYTES // element_size if wide else NARROW_BLOCK


# Below, ``no_type_check`` keeps run-time type checkers out of functions that Numba compiles.


def exponent_constants(dtype: np.dtype, temperature: float) -> tuple[Any, Any, Any]:
    """Split log₂(e)/T into a leading and a trailing part, and give the lowest x = z − max z that is still summed.

    Example:
        >>> high, low, lowest = exponent_constants(np.dtype(np.float32), 1.0)
        >>> round(float(lowest), 2)
        -86.99
    """
    real = dtype.type
    limit = np.finfo(dtype)
    factor = min(max(math.log2(math.e) / temperature, float(limit.tiny)), float(limit.max) / 4)
    high = real(factor)
    lowest = max(_LOWEST_EXPONENT[dtype] / factor, -float(limit.max))
    return high, real(factor - float(high)), real(lowest)


@intrinsic
def _widen(typing_context: Any, value: Any) -> Any:
    """Read a logit: uint16 holds bfloat16, int16 holds float16; float32 and float64 are themselves."""
    result = {types.uint16: types.float32, types.int16: types.float32}.get(value, value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (bits,) = arguments
        if signature.args[0] == types.uint16:
            word = ir.IntType(32)
            return builder.bitcast(builder.shl(builder.zext(bits, word), ir.Constant(word, 16)), ir.FloatType())
        if signature.args[0] == types.int16:
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
        return bits

    return result(value), generate


@intrinsic
def _narrow(typing_context: Any, value: Any, like: Any) -> Any:
    """Round a gradient, to nearest and even, to the type that ``like`` stores."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, _ = arguments
        if signature.return_type == types.uint16:
            word = ir.IntType(32)
            bits = builder.bitcast(number, word)
            odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
            rounded = builder.add(builder.add(bits, odd), ir.Constant(word, 0x7FFF))
            # The carry of the rounding would turn some NaNs into zeros.
            rounded = builder.select(builder.fcmp_unordered("uno", number, number), bits, rounded)
            return builder.trunc(builder.lshr(rounded, ir.Constant(word, 16)), ir.IntType(16))
        if signature.return_type == types.int16:
            return builder.bitcast(builder.fptrunc(number, ir.HalfType()), ir.IntType(16))
        return number

    return like(value, like), generate


@intrinsic
def _unsigned(typing_context: Any, value: Any) -> Any:
    """Look at the same bits as an unsigned integer."""
    unsigned = {types.int16: types.uint16, types.int32: types.uint32, types.int64: types.uint64}[value]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return unsigned(value), generate


@intrinsic
def _number(typing_context: Any, bits: Any, like: Any) -> Any:
    """Turn the raw bits of a logit back into the stored type of ``like`` (see ``_widen``)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = context.get_value_type(signature.return_type)
        return builder.bitcast(arguments[0], target)

    return like(bits, like), generate


@njit(nogil=True, error_model="numpy")
@no_type_check
def _extremes(bits: Any) -> Any:
    """Find the largest raw pattern, read as signed and as unsigned.

    Patterns of numbers ≥ 0 grow with the number. Those of negative ones shrink as signed integers and, as unsigned
    ones, are the largest of all: the greatest is the most negative number, or a NaN.
    """
    highest, outermost = bits[0], _unsigned(bits[0])
    for i in range(bits.size):
        value = bits[i]
        highest = value if value > highest else highest
        pattern = _unsigned(value)
        outermost = pattern if pattern > outermost else outermost
    return highest, outermost


@njit(nogil=True, error_model="numpy")
@no_type_check
def _lowest_pattern(bits: Any) -> Any:
    lowest = bits[0]
    for i in range(bits.size):
        value = bits[i]
        lowest = value if value < lowest else lowest
    return lowest


@njit(nogil=True, error_model="numpy", fastmath=LANES)
@no_type_check
def _plain_sums(block: Any, top: Any, high: Any, low: Any) -> Any:
    zero = top - top
    total, first, p2, q2 = zero, zero, zero, zero
    for i in range(block.size):
        x = _widen(block[i]) - top
        e = exp(x, high, low)
        squared = e * e
        total += e
        first += e * x
        p2 += squared
        q2 += squared * x
    return total, first, p2, q2


@njit(nogil=True, error_model="numpy", fastmath=LANES)
@no_type_check
def _careful_sums(block: Any, top: Any, high: Any, low: Any, lowest: Any) -> Any:
    zero = top - top
    total, first, p2, q2, count = zero, zero, zero, zero, 0
    for i in range(block.size):
        x = _widen(block[i]) - top
        held = x if x > lowest else lowest
        e = exp(held, high, low)
        e = zero if (x == zero) | (x <= lowest) else e
        squared = e * e
        count += x == zero
        total += e
        first += e * held
        p2 += squared
        q2 += squared * held
    return total, first, p2, q2, count


@njit(nogil=True, error_model="numpy", fastmath=LANES)
@no_type_check
def _second_order_sums(block: Any, top: Any, high: Any, low: Any, lowest: Any) -> Any:
    zero = top - top
    d2, p3, q3 = zero, zero, zero
    for i in range(block.size):
        x = _widen(block[i]) - top
        held = x if x > lowest else lowest
        e = exp(held, high, low)
        e = zero if (x == zero) | (x <= lowest) else e
        squared = e * e
        cubed = squared * e
        d2 += squared * held * held
        p3 += cubed
        q3 += cubed * held
    return d2, p3, q3


@njit(nogil=True, error_model="numpy")
@no_type_check
def _move_top(sums: Any, top: float, temperature: float) -> None:
    """Express the running sums relative to a higher maximum; the old maxima become ordinary tokens."""
    if sums[0] != -np.inf:
        step = (top - sums[0]) / temperature  # Δ
        w = math.exp(-step)
        # The maxima have e^d = 1 and d = 0, so they enter the plain power sums only.
        total, first = sums[2] + sums[1], sums[3]
        p2, q2 = sums[4] + sums[1], sums[5]
        moves = w > 0.0  # Δ may be infinite where the weight is zero
        sums[2] = w * total
        sums[3] = w * (first - step * total) if moves else 0.0
        sums[4] = w * w * p2
        sums[5] = w * w * (q2 - step * p2) if moves else 0.0
        if sums.size > 6:
            p3, q3 = sums[7] + sums[1], sums[8]
            sums[6] = w * w * (sums[6] - 2.0 * step * q2 + step * step * p2) if moves else 0.0
            sums[7] = w * w * w * p3
            sums[8] = w * w * w * (q3 - step * p3) if moves else 0.0
    sums[0] = top
    sums[1] = 0.0


@cached
@no_type_check
def accumulate(
    data: Any, bits: Any, offsets: Any, vocab_size: int, block: int, constants: Any, temperature: float, sums: Any
) -> None:
    """Add rows of logits to their accumulators, (rows, 6 or 9) float64 (see ``accumulators``), in one read.

    Args:
        data: The storage of the logits, flat, as ``_widen`` reads it.
        bits: The same memory as signed integers.
        offsets: Where each row starts.
        vocab_size: V.
        block: Logits per block.
        constants: See ``exponent_constants``.
        temperature: T.
        sums: Updated in place.
    """
    high, low, lowest = constants
    for row in range(offsets.size):
        out = sums[row]
        for start in range(offsets[row], offsets[row] + vocab_size, block):
            stop = min(start + block, offsets[row] + vocab_size)
            values, patterns = data[start:stop], bits[start:stop]
            highest, outermost = _extremes(patterns)
            if highest < 0:
                highest = _lowest_pattern(patterns)
            block_top = float(_widen(_number(highest, values[0])))
            bottom = _widen(_number(outermost, values[0]))
            if bottom != bottom:
                block_top = np.nan
            elif bottom >= 0:  # no negative number in the block
                bottom = _widen(_number(_lowest_pattern(patterns), values[0]))
            if not block_top < np.inf or out[0] != out[0]:
                out[0] = np.nan  # NaN or +inf: no policy can be read from this row
                break
            if block_top == -np.inf:
                continue
            if block_top > out[0]:
                _move_top(out, block_top, temperature)
            top = cast(out[0], high)
            if block_top < out[0] and bottom - top > lowest:
                total, first, p2, q2 = _plain_sums(values, top, high, low)
            else:
                total, first, p2, q2, count = _careful_sums(values, top, high, low, lowest)
                out[1] += count
            out[2] += total
            out[3] += first / temperature
            out[4] += p2
            out[5] += q2 / temperature
            if out.size > 6:
                d2, p3, q3 = _second_order_sums(values, top, high, low, lowest)
                out[6] += d2 / (temperature * temperature)
                out[7] += p3
                out[8] += q3 / temperature


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
@no_type_check
def _gradient_row(block: Any, out: Any, top: Any, constants: Any, level: Any, slope: Any) -> None:
    high, low, lowest = constants
    zero = top - top
    for i in range(block.size):
        x = _widen(block[i]) - top
        held = x if x > lowest else lowest
        e = exp(held, high, low)
        e = zero if x <= lowest else e
        out[i] = _narrow(e * (level + slope * held), out[i])


@cached
@no_type_check
def write_gradient(
    data: Any, offsets: Any, vocab_size: int, constants: Any, top: Any, level: Any, slope: Any, out: Any
) -> None:
    """Write e^{x/T} (level + slope · x) with x = z − max z, one read and one write.

    Args:
        data: The storage of the logits, flat, as ``_widen`` reads it.
        offsets: Where each row starts.
        vocab_size: V.
        constants: See ``exponent_constants``.
        top: max z of each row, float64.
        level: One number per row, float64; NaN makes the row NaN.
        slope: One number per row, float64.
        out: (rows, V), in the type of ``data``.
    """
    like = constants[0]
    for row in range(offsets.size):
        start = offsets[row]
        _gradient_row(
            data[start : start + vocab_size],
            out[row],
            cast(top[row], like),
            constants,
            cast(level[row], like),
            cast(slope[row], like),
        )
