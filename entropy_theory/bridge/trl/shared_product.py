"""TRL's product with the output matrix, read for the token statistics while it is in memory.

TRL 1.16 computes log-probabilities and entropies from tiles of logits, and on a CPU hands each tile to one function of
its module ``trl.kernels.chunked_logprob``. That function is wrapped while a training forward runs, and returns what it
always does. What was read is used if it is whole and its log-probabilities are TRL's; else the caller makes the product
again, as with a release or a device where TRL works in another way.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from entropy_theory.vocab import TokenStatistics
from entropy_theory.vocab.from_hidden import TiledStatistics
from entropy_theory.vocab.implementations import resolve
from entropy_theory.vocab.model_head import capped

MODULE, FUNCTION = "trl.kernels.chunked_logprob", "_forward_tile"
PARAMETERS = {"tile", "vocab_start", "n_cols", "logit_scale", "softcap", "inv_t", "HAS_SOFTCAP"}

PIECE = 1 << 18
"""Logits that are copied out of a tile at a time; they stay in the cache until they are read."""


class SharedProduct:
    """Reads the completions' rows of TRL's tiles.

    Args:
        tokens: The completions in the caller's order, (B, T).
        order: Row i of ``tokens`` is row ``order[i]`` of TRL's batch.
        prompt_length: P.
        vocab_size: V.
        softcap: κ of the output layer, or None.
        temperature: T.
        second_order: Also Σ S² and the curvature.
    """

    def __init__(
        self,
        tokens: Tensor,
        order: Tensor,
        prompt_length: int,
        *,
        vocab_size: int,
        softcap: float | None,
        temperature: float,
        second_order: bool,
    ) -> None:
        self._tokens, self._order = tokens[order.argsort()], order  # as TRL has the rows
        self._before, self._length = prompt_length - 1, tokens.shape[1]
        self._vocab_size, self._softcap = vocab_size, softcap
        self._temperature, self._second_order = temperature, second_order
        self._tiled: TiledStatistics | None = None
        self._first = self._rows = self._words = 0  # of the present block of rows; and words read of it
        self._whole = True  # until a tile is not what this module understands

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read TRL's tiles inside the block, where TRL has such a function."""
        found = _function()
        if found is None:
            yield
            return
        module, function = found
        signature = inspect.signature(function)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            if not torch.compiler.is_compiling():
                self._see(signature.bind(*arguments, **options).arguments)
            return result

        setattr(module, FUNCTION, wrapped)
        try:
            yield
        finally:
            setattr(module, FUNCTION, function)

    @torch.no_grad()
    def _see(self, tile: dict[str, Any]) -> None:
        """Read a tile of consecutive rows, (B (P + T − 1), V) in all, block of rows by block of rows."""
        logits, start = tile["tile"], int(tile["vocab_start"])
        if start == 0:
            self._first, self._words = self._first + self._rows, 0
            self._rows = len(logits)
        as_known = (
            (tile["softcap"] if tile["HAS_SOFTCAP"] else None) == self._softcap
            and tile["logit_scale"] == 1.0
            and tile["inv_t"] == 1 / self._temperature
            and (start, len(logits), int(tile["n_cols"])) == (self._words, self._rows, logits.shape[1])
        )
        self._whole = self._whole and as_known
        if not self._whole:
            return
        self._words += logits.shape[1]
        if self._tiled is None:
            dtype = logits.dtype if self._softcap is None else torch.promote_types(logits.dtype, torch.float32)
            impl = resolve("auto", logits.device, dtype, self._tokens.numel() * self._vocab_size)
            self._tiled = TiledStatistics(
                self._tokens,
                logits.dtype,
                temperature=self._temperature,
                second_order=self._second_order,
                impl=impl,
            )
        width = self._before + self._length
        rows = torch.arange(self._first, self._first + self._rows, device=logits.device)
        completion = (rows % width >= self._before).nonzero().squeeze(-1)
        done = self._first // width * self._length + max(self._first % width - self._before, 0)
        for part in completion.split(max(1, PIECE // logits.shape[1])):
            own = logits[part] if self._softcap is None else capped(logits[part], self._softcap)
            self._tiled.add(slice(done, done + len(part)), start, own)
            done += len(part)

    def statistics(self, log_probs: Tensor, mask: Tensor) -> TokenStatistics | None:
        """What was read; None unless every row was, and the tokens' log-probabilities are TRL's to float32 rounding.

        Args:
            log_probs: TRL's, (B, T), in the order of ``tokens``.
            mask: The tokens that count.
        """
        rows = len(self._order) * (self._before + self._length)
        if (
            not self._whole
            or self._tiled is None
            or (self._first + self._rows, self._words) != (rows, self._vocab_size)
        ):
            return None
        read = self._tiled.statistics()
        values = {f.name: getattr(read, f.name) for f in fields(read)}
        reordered: dict[str, Any] = {k: v[self._order] for k, v in values.items() if isinstance(v, Tensor)}
        statistics = replace(read, **reordered)
        # Sums of V terms in float32 may be off by a few hundred roundings.
        same = torch.isclose(statistics.log_probs, log_probs.detach().to(statistics.log_probs.dtype), 1e-4, 1e-4)
        return statistics if bool((same | ~mask.bool()).all()) else None


def _function() -> tuple[ModuleType, Callable[..., Any]] | None:
    """TRL's module and the function that every tile passes, if this release has it."""
    try:
        module = importlib.import_module(MODULE)
    except ImportError:
        return None
    function = getattr(module, FUNCTION, None)
    if not inspect.isfunction(function) or not set(inspect.signature(function).parameters) >= PARAMETERS:
        return None
    return module, function
