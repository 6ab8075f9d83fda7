"""The room that a thread of the compiled steps works in: where the parts of its arrays begin."""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
from numba import njit
from numpy.typing import NDArray

from entropy_theory.dynamics.kernels import layout
from entropy_theory.dynamics.kernels.arithmetic import TILE
from entropy_theory.vocab.kernels.compiled import borrowed

_compiled = njit(nogil=True, error_model="numpy", forceinline=True)

_GROUPS = 4  # numbers per sampled token that the loops keep at hand

Room = tuple[NDArray[np.float64], NDArray[np.int64]]


def room_for(vocab_size: int, group_size: int) -> Room:
    """Make the room that a thread needs for its policies: V zeros, some tiles, and some numbers per sampled token.

    Example:
        >>> [part.size for part in room_for(100, 16)]
        [951, 33]
    """
    tiles = -(-vocab_size // TILE)
    numbers = vocab_size + 3 * TILE + tiles + 2 * layout.STATE + _GROUPS * group_size
    return np.zeros(numbers), np.empty(tiles + 2 * group_size, np.int64)


@_compiled
@no_type_check
def tiles_of(room: Any, vocab_size: int) -> Any:
    """Give the zeros, three tiles, the sums of all tiles, and a policy's statistics."""
    numbers, end = borrowed(room[0]), vocab_size + 3 * TILE
    sums = end + (vocab_size + TILE - 1) // TILE
    return (
        numbers[:vocab_size],
        numbers[vocab_size : vocab_size + TILE],
        numbers[vocab_size + TILE : vocab_size + 2 * TILE],
        numbers[vocab_size + 2 * TILE : end],
        numbers[end:sums],
        numbers[sums : sums + layout.STATE],
    )


@_compiled
@no_type_check
def state_of(room: Any, vocab_size: int) -> Any:
    """Give another policy's statistics, which follow those of `tiles_of`."""
    start = vocab_size + 3 * TILE + (vocab_size + TILE - 1) // TILE + layout.STATE
    return borrowed(room[0])[start : start + layout.STATE]


@_compiled
@no_type_check
def lists_of(room: Any, vocab_size: int, group_size: int) -> Any:
    """Give the heads of the tiles' lists, the followers in them, and a group's tokens."""
    places, tiles = borrowed(room[1]), (vocab_size + TILE - 1) // TILE
    return places[:tiles], places[tiles : tiles + group_size], places[tiles + group_size :]


@_compiled
@no_type_check
def group_of(room: Any, group_size: int, which: int) -> Any:
    """Give one of the parts that hold a number per sampled token."""
    numbers = borrowed(room[0])
    start = numbers.size - (which + 1) * group_size
    return numbers[start : start + group_size]
