"""Threads for the compiled loops: they take rows as they become free.

The kernels let go of Python's lock, so any threads do. Torch's own are the right ones: they spin for milliseconds after
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

import torch

_pools: dict[int, ThreadPoolExecutor] = {}  # by number of threads; torch.set_num_threads rarely changes it
_forked = False


def _forget_threads() -> None:
    global _forked
    _forked = True  # a forked child has the pools, OpenMP's too, but not their threads
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def share(run: Callable[[slice], None], rows: int, turn: int) -> None:
    """Let as many threads as torch uses take turns of a few rows until none is left.

    Args:
        run: Called with the rows of a turn, on any of the threads; must not hold Python's lock for long.
        rows: How many rows there are.
        turn: Rows in a turn, but the last.

    Example:
        >>> done = []
        >>> share(done.append, 5, 10)
        >>> done
        [slice(0, 5, None)]
    """
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
        try:
            work()
        finally:  # the others write to the caller's memory until they are done
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
