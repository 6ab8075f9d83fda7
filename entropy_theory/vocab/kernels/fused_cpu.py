"""Token statistics on the CPU in one read of the logits, on all cores.

The loops are in `cpu_loops`; here is what lies between them and torch: a flat view of the storage, so that any
strides are read where they are as long as a row is contiguous, and threads that take rows as they become free. The
kernels let go of Python's lock, so any threads do. Torch's own are the right ones: they spin for milliseconds after
every parallel operation and hold the cores meanwhile, so threads beside them would wait. They are reached through the
OpenMP runtime that torch has loaded; where it is not GNU's, a thread pool serves.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from entropy_theory.vocab.accumulators import empty
from entropy_theory.vocab.kernels import cpu_loops

# How a dtype is handed to the kernels: as the numbers themselves, or as 16-bit patterns that they widen.
_PATTERNS = {torch.bfloat16: np.dtype(np.uint16), torch.float16: np.dtype(np.int16)}
_SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Logits a thread takes at a time: long against the 20 µs that a turn costs, short enough to share rows evenly.
TURN_ELEMENTS = 1 << 20

_pools: dict[int, ThreadPoolExecutor] = {}  # by number of threads; torch.set_num_threads rarely changes it
_forked = False


def _forget_threads() -> None:
    global _forked
    _forked = True  # a forked child has the pools, OpenMP's too, but not their threads
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


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
    block = cpu_loops.BLOCK_BYTES // storage.element_size()

    def run(part: slice) -> None:
        cpu_loops.accumulate(data, bits, offsets[part], vocab_size, block, constants, temperature, out[part])

    _share(run, rows, vocab_size)
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

    _share(run, rows, vocab_size)
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


def _share(run: Callable[[slice], None], rows: int, vocab_size: int) -> None:
    """Let as many threads as torch uses take turns of a few rows until none is left."""
    turn = max(1, TURN_ELEMENTS // vocab_size)
    threads = min(torch.get_num_threads(), -(-rows // turn))
    if threads <= 1:
        run(slice(0, rows))
        return
    turns = itertools.count()  # next() on it is atomic

    def work() -> None:
        while (start := next(turns) * turn) < rows:
            run(slice(start, min(start + turn, rows)))

    _together(work, threads)


def _together(work: Callable[[], None], threads: int) -> None:
    """Call ``work`` on this thread and on others at once; an exception of any of them is raised here."""
    openmp = None if _forked else _torch_openmp()
    if openmp is None:
        workers = torch.get_num_threads() - 1
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="entropy-theory")
        others = [_pools[workers].submit(work) for _ in range(threads - 1)]
        work()
        wait(others)
        for other in others:
            other.result()
        return
    errors: list[BaseException] = []

    def guarded(_: object) -> None:
        try:
            work()
        except BaseException as error:  # it must not unwind through OpenMP
            errors.append(error)

    openmp.GOMP_parallel(_REGION(guarded), None, threads, 0)
    if errors:
        raise errors[0]


_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _torch_openmp() -> ctypes.CDLL | None:
    """Find the GNU OpenMP runtime that torch runs on, if it does; never load another one beside it."""
    for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*"):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)
        except OSError:
            continue
        library.GOMP_parallel.argtypes = [_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
        return library
    return None
