"""Shared by the tests of pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from inspect_rollouts import inspected


@pytest.fixture(scope="session")
def inspection(byte_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """Hostile rollouts, scored once."""
    return inspected(byte_model, tmp_path_factory.mktemp("inspect"))


@pytest.fixture(scope="session")
def influenced(byte_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """The same with the influence of every token."""
    return inspected(byte_model, tmp_path_factory.mktemp("influence"), influence=True)
