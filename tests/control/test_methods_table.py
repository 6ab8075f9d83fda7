"""docs/methods.md is what the registry makes."""

from __future__ import annotations

from pathlib import Path

from entropy_theory.control import rule_class, rule_names
from entropy_theory.control.table import methods_table

PINNED = """clip-b clip-v ppo-clip clip-higher high-entropy clip-cov kl-cov steer stare entropy-flow entropy-bonus
adaptive-entropy w-reinforce ce-gppo entropy-ratio advantage-reweighting cispo gspo sapo dcpo bapo random-mask none"""


def test_pinned_names_exist() -> None:
    assert set(PINNED.split()) <= set(rule_names())


def test_every_rule_has_its_row() -> None:
    for name in rule_names():
        cls = rule_class(name)
        assert cls.kind
        assert cls.quadrants
        assert cls.paper or name in ("none", "random-mask")
        assert f"| `{name}` |" in methods_table()


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    assert page.read_text() == methods_table(), "run: python -m entropy_theory.control.table > docs/methods.md"
