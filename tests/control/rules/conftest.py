"""The recorded inputs and outputs of the official codes, as fixtures of the parity tests."""

from __future__ import annotations

import numpy as np
import parity_fixtures as fixtures
import pytest

from entropy_theory.control import TokenBatch

SOURCES = [
    *(("small", regime) for regime in fixtures.SMALL_REGIMES),
    *(("full", regime) for regime in fixtures.REGIMES),
]


@pytest.fixture(params=SOURCES, ids="-".join)
def data(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    return fixtures.load(*request.param)


@pytest.fixture
def batch(data: dict[str, np.ndarray]) -> TokenBatch:
    return fixtures.batch_of(data, requires_grad=True)
