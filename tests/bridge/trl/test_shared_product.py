"""TRL's product with the output matrix serves the token statistics in one pass, or is made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_scoring import Counting, assert_same, from_logits
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments, build, closeness, parameters_after

from entropy_theory.bridge.trl import shared_product
from entropy_theory.bridge.trl.shared_product import SharedProduct
from entropy_theory.vocab import TokenStatistics

kernels = pytest.importorskip("trl.kernels.chunked_logprob", reason="this TRL has no product of its own")
FOLD = kernels._forward_tile


class MadeAgain(Counting):
    """Counts the products that are made for the statistics alone."""

    def _start_control(self) -> None:
        super()._start_control()
        make, self.products = self._scorer.from_hidden, 0

        def counted(*arguments: Any, **options: Any) -> TokenStatistics:
            self.products += 1
            return make(*arguments, **options)

        self._scorer.from_hidden = counted


def run(tiny_decoder: Path, folder: Path) -> MadeAgain:
    options = arguments(folder, temperature=1.2, learning_rate=0.0)
    trainer = build(MadeAgain, tiny_decoder, GRPOConfig(**options))
    trainer.train()
    assert_same(trainer.used, from_logits(trainer), trainer.batch["completion_mask"].bool())
    return trainer


@pytest.mark.parametrize(
    ("rows", "words", "piece"), [(4096, 32768, shared_product.PIECE), (4096, 32768, 100), (37, 5, 20), (1, 7, 1)]
)
def test_no_product_is_made_again(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, words: int, piece: int
) -> None:
    """Whatever TRL's tiles are: blocks of rows that cut completions, and tiles that cut the vocabulary."""
    monkeypatch.setattr(shared_product, "PIECE", piece)
    monkeypatch.setattr(kernels, "TOKEN_CHUNK_SIZE", rows)
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", words)
    assert run(tiny_decoder, tmp_path).products == 0
    assert kernels._forward_tile is FOLD  # and TRL is as it was


def test_short_completions_are_read_together(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call for each completion would cost more than the rest of a small model's step."""
    add, calls = shared_product.TiledStatistics.add, []

    def counted(self: Any, rows: slice, start: int, logits: torch.Tensor) -> None:
        calls.append(len(logits))
        add(self, rows, start, logits)

    monkeypatch.setattr(shared_product.TiledStatistics, "add", counted)
    trainer = run(tiny_decoder, tmp_path)
    assert calls == [trainer.batch["completion_ids"].numel()]


ALTERED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another scale": lambda tile: {"logit_scale": 2.0},
    "another temperature": lambda tile: {"inv_t": 1.0},
    "a soft cap": lambda tile: {"HAS_SOFTCAP": True},
    "other logits": lambda tile: {"tile": 1.1 * tile["tile"]},
    "other rows": lambda tile: {"tile": tile["tile"].flip(0)},
    "half of the vocabulary": lambda tile: {"tile": tile["tile"][:, :8], "n_cols": 8},
    "no first tile": lambda tile: {"vocab_start": tile["vocab_start"] + 1},
}


@pytest.mark.parametrize("change", ALTERED)
def test_a_product_that_is_not_understood_is_made_again(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    read, seen = SharedProduct._see, []

    def altered(self: Any, tile: dict[str, Any]) -> None:
        seen.append(tile)
        read(self, tile | ALTERED[change](tile))

    monkeypatch.setattr(SharedProduct, "_see", altered)
    assert run(tiny_decoder, tmp_path).products == 1
    assert seen


def test_a_release_without_that_function(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_product, "FUNCTION", "_fold_tile")
    assert run(tiny_decoder, tmp_path).products == 1


def test_the_update_is_trls_to_the_bit(tiny_decoder: Path, tmp_path: Path) -> None:
    options = arguments(tmp_path, max_steps=2)
    expected = parameters_after(build(GRPOTrainer, tiny_decoder, GRPOConfig(**options), reward_funcs=closeness))
    ours = build(MadeAgain, tiny_decoder, GRPOConfig(**options), rule="none", reward_funcs=closeness)
    assert torch.equal(parameters_after(ours), expected)
    assert ours.products == 0
