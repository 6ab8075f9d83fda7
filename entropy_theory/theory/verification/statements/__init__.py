"""What the package states: each entry says it in words and as a formula, and lists the checks that hold it.

To add a statement, append it to one of these lists; its checks live in `checks`, and tests name it by
`@pytest.mark.statement`. Nothing else has to know of it.
"""

from __future__ import annotations

PAPER = "arXiv 2602.03392"
POSITIVE = "p_i > 0 for every token"
OWN_LOGITS = "one position's logits are the parameters"
ONE_TOKEN = "one sampled token at the position"
ONE_LOGIT = "one logit moves, all others stay"
SMALL_STEP = "a small step: the error is of second order in it"


def beyond(section: str) -> str:
    """Name a section of the theory notes as the source of a statement."""
    return f"beyond the paper: section {section} of the theory notes"


def part(number: str) -> str:
    """Name a part of the theory notes, or a result of one, as the source of a statement."""
    return f"beyond the paper: part {number} of the theory notes"
