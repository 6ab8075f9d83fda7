"""The eager implementation's blocks; what it computes is asked in `test_statistics`."""

from __future__ import annotations

import pytest
import torch

from entropy_theory.vocab import token_statistics
from entropy_theory.vocab.kernels import eager


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(17, 33, generator=torch.Generator().manual_seed(5))
    tokens = torch.randint(0, 33, (17,), generator=torch.Generator().manual_seed(6))
    whole = token_statistics(logits, tokens)
    monkeypatch.setattr(eager, "BLOCK_ELEMENTS", 100)
    parts = token_statistics(logits, tokens)
    assert torch.equal(whole.centered_discriminant, parts.centered_discriminant)
