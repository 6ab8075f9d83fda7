"""A tiny decoder for the trainer tests, warmed up just enough to be right now and then."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from entropy_theory.testbed import decoder


@pytest.fixture(scope="session")
def tiny_decoder() -> Path:
    return decoder.cached_checkpoint(
        decoder.WarmupConfig(hidden_size=32, layers=1, heads=2, steps=250, batch_size=64, learning_rate=5e-3)
    )
