"""Records that the documentation quotes, and their numbers as it writes them."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def whole_record(name: str, room: str = "simulations") -> dict:
    return json.loads((ROOT / room / "results" / f"{name}.json").read_text())


def record(name: str) -> dict:
    return whole_record(name)["summary"]


def figures(interval: dict, digits: int = 2) -> str:
    return f"{interval['mean']:.{digits}f} ± {interval['half_width']:.{digits}f}"
