"""What the compiled loops of the package share: an exponential that vectorises, and how functions are compiled."""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# 2^r on [−½, ½], highest power first: Chebyshev interpolation, relative error 2e-9 and 3e-18.
_EXP2_32 = (
    0.0001546144469856913,
    0.0013400428177615838,
    0.009618056678524637,
    0.05550327226670302,
    0.24022650922288757,
    0.6931472067028326,
    1.0,
)
_EXP2_64 = (
    4.4558179083360645e-10,
    7.074194297288521e-09,
    1.0178057087733941e-07,
    1.3215432535912375e-06,
    1.5252733841556773e-05,
    0.00015403530463724353,
    0.001333355814640647,
    0.009618129107587256,
    0.055504108664821625,
    0.24022650695910158,
    0.6931471805599453,
    1.0,
)

# Sums may be split over lanes and products contracted; NaN and infinity keep their meaning, order of the rest is free.
LANES = {"reassoc", "contract", "nsz"}


def cached(function: Any) -> Any:
    """Compile on first use and keep the code on disk; where that fails, warn and compile in every process.

    Numba takes code from disk as long as the function's own file is the same, although the code of functions from other
    files is in it. Here any change in this folder or in the function's counts.
    """
    try:
        compiled = njit(nogil=True, error_model="numpy", cache=True)(function)
        cache = compiled._cache
        cache._cache_file._source_stamp = (
            cache._cache_file._source_stamp,
            _digest(Path(inspect.getfile(function)).parent),
        )
        cache.load_overload = _or_none(cache.load_overload)
        cache.save_overload = _or_none(cache.save_overload)
    except (RuntimeError, AttributeError) as error:  # no place for a cache, or a Numba that keeps it in another way
        _warn_uncached(error)
        return njit(nogil=True, error_model="numpy")(function)
    return compiled


def _or_none(access: Callable[..., Any]) -> Callable[..., Any]:
    """Do without the code on disk if it cannot be read or written: a full disk, a file that is cut off."""

    @functools.wraps(access)
    def attempt(*args: Any) -> Any:
        try:
            return access(*args)
        except Exception as error:  # unpickling a broken file may raise anything
            _warn_uncached(error)
            return None

    return attempt


def _warn_uncached(error: Exception) -> None:
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    warnings.warn(f"compiled loops are not kept on disk ({why}); NUMBA_CACHE_DIR names another folder", stacklevel=2)


@functools.cache
def _digest(folder: Path) -> str:
    """Hash the sources of this folder and of another one."""
    files = sorted({*Path(__file__).parent.glob("*.py"), *folder.glob("*.py")})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@intrinsic
def borrowed(typing_context: Any, array: Any) -> Any:
    """View an array that somebody else keeps alive: the atomic counting of its rows and tiles is saved."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.return_type)(context, builder, arguments[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), generate


@intrinsic
def cast(typing_context: Any, value: Any, like: Any) -> Any:
    """Round a float64 to the type of ``like``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, _ = arguments
        return number if signature.return_type == types.float64 else builder.fptrunc(number, ir.FloatType())

    return like(value, like), generate


def polynomial(builder: Any, x: Any, coefficients: Sequence[float]) -> Any:
    """Build the value at x of a polynomial, highest power first, pairing terms (Estrin's scheme).

    Its longest chain of dependent steps grows with the logarithm of the number of terms, Horner's with the number
    itself; that is what a loop over few numbers waits for.
    """
    terms = [ir.Constant(x.type, coefficient) for coefficient in reversed(coefficients)]
    while len(terms) > 1:
        pairs = [builder.fma(high, x, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms, x = [*pairs, *terms[2 * len(pairs) :]], builder.fmul(x, x)
    return terms[0]


@intrinsic
def exp(typing_context: Any, x: Any, high: Any, low: Any) -> Any:
    """Compute e^{x/T} = 2^{x (high + low)} by splitting off the integer exponent; fused steps only, no branch."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, high, low = arguments
        wide = signature.return_type == types.float64
        real, word = (ir.DoubleType(), ir.IntType(64)) if wide else (ir.FloatType(), ir.IntType(32))
        # Adding 1.5·2^(mantissa bits) rounds to an integer and leaves that integer in the low bits.
        rounder = ir.Constant(real, 1.5 * 2.0 ** (52 if wide else 23))
        shifted = builder.fma(x, high, rounder)
        whole = builder.fsub(shifted, rounder)
        rest = builder.fma(x, low, builder.fma(x, high, builder.fneg(whole)))
        *coefficients, constant = _EXP2_64 if wide else tuple(float(np.float32(c)) for c in _EXP2_32)
        power = builder.fma(polynomial(builder, rest, coefficients), rest, ir.Constant(real, constant))
        exponent = builder.shl(builder.bitcast(shifted, word), ir.Constant(word, 52 if wide else 23))
        return builder.bitcast(builder.add(builder.bitcast(power, word), exponent), real)

    return x(x, x, x), generate
