"""Draw the paper figures and write the gallery page: caption, statement and command of each.

python -m paper_figures.gallery               # all of them, and the page
python -m paper_figures.gallery quadrant_map  # those that are named, without the page
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from entropy_theory import records
from paper_figures import style

ORDER = (
    "discriminant",
    "quadrant_map",
    "real_vocabulary",
    "exact_change",
    "remainder_slopes",
    "sign_flip_radius",
    "acceptance_regions",
    "noise_boundary",
    "rules_in_training",
    "control_contest",
    "long_control",
    "real_model_training",
    "centring_in_training",
    "pass_rates",
    "bank_rules",
    "thresholds",
    "clipped_tokens",
    "shares_and_weights",
    "lens_prediction",
    "parameter_sharing",
    "token_influence",
    "scaling_cost",
)

HEAD = """# Gallery

Every figure is drawn from committed results and from formulas of the package, by one file of `paper_figures/`.
`make figures` draws them all, as PDF and PNG, into `paper_figures/out/`; `make figures-full` runs the simulations
first. Intervals are 95 % t-intervals over seeds. This page is generated.
"""


def figure_module(name: str) -> ModuleType:
    """Import the module of a figure."""
    return import_module(f"paper_figures.{name}")


def page() -> str:
    """The gallery as Markdown."""
    parts = [HEAD]
    for name in ORDER:
        module = figure_module(name)
        commands = [f"`python -m paper_figures.gallery {name}`"]
        if module.RERUN:
            commands.append(f"from the results of `{module.RERUN}`")
        parts.append(
            f"## {module.TITLE}\n\n![{module.TITLE}](images/gallery/{name}.png)\n\n{module.caption()}\n\n"
            f"*Statement:* {module.STATEMENT}.\n*Command:* {', '.join(commands)}.\n"
        )
    return "\n".join(parts)


def main(names: Sequence[str]) -> None:
    """Draw the named figures; without names, all of them and the page."""
    unknown = [name for name in names if name not in ORDER]
    if unknown:
        sys.exit(f"figure: expected one of {', '.join(ORDER)}, received {', '.join(unknown)}")
    start = time.monotonic()
    for name in names or ORDER:
        style.make(figure_module(name))
        print(f"{name} [{time.monotonic() - start:.0f} s]", flush=True)
    if not names:
        target = style.ROOT / "docs" / "gallery.md"
        with records.written_whole(target) as temporary:
            temporary.write_text(page())
        print(f"{len(ORDER)} figures in {style.OUT.relative_to(style.ROOT)}/, {target.relative_to(style.ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
