"""docs/methods.md is what the registry makes."""

from __future__ import annotations

from pathlib import Path

from entropy_theory import records
from entropy_theory.control import rule_class, rule_names
from entropy_theory.control.table import methods_table

PINNED = """clip-b clip-v ppo-clip clip-higher high-entropy clip-cov kl-cov steer stare entropy-flow entropy-bonus
adaptive-entropy w-reinforce ce-gppo entropy-ratio advantage-reweighting cispo gspo sapo dcpo bapo random-mask none"""


RECORDS = "simulations/results/control_contest_{contest,long}.json"
COMMAND = f"python -m entropy_theory.control.table {RECORDS} > docs/methods.md"


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
    root = Path(__file__).parents[2]
    stages = (root / "simulations" / "results" / f"control_contest_{stage}.json" for stage in ("contest", "long"))
    table = methods_table(*(records.read_json(path) for path in stages))
    assert (root / "docs" / "methods.md").read_text() == table, f"run: {COMMAND}"
    assert COMMAND in " ".join(methods_table().split())
