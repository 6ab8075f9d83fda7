"""Draw every paper figure, and write the gallery page: caption, statement and command of each.

python paper_figures/gallery.py
"""

from __future__ import annotations

import time

import style

from entropy_theory import records

ORDER = (
    "discriminant",
    "quadrant_map",
    "exact_change",
    "remainder_slopes",
    "sign_flip_radius",
    "acceptance_regions",
    "noise_boundary",
    "rules_in_training",
    "centring_in_training",
    "pass_rates",
    "bank_rules",
    "thresholds",
    "clipped_tokens",
    "shares_and_weights",
    "lens_prediction",
    "parameter_sharing",
    "scaling_cost",
)

HEAD = """# Gallery

Every figure is drawn from committed results and from formulas of the package, by one file of `paper_figures/`.
`make figures` draws them all, as PDF and PNG, into `paper_figures/out/`; `make figures-full` runs the simulations
first. Intervals are 95 % t-intervals over seeds. This page is generated.
"""


def page() -> str:
    """The gallery as Markdown."""
    parts = [HEAD]
    for module in style.modules():
        name = str(module.__name__)
        commands = [f"`python paper_figures/{name}.py`"]
        if module.RERUN:
            commands.append(f"from the results of `{module.RERUN}`")
        parts.append(
            f"## {module.TITLE}\n\n![{module.TITLE}](images/gallery/{name}.png)\n\n{module.caption()}\n\n"
            f"*Statement:* {module.STATEMENT}.\n*Command:* {', '.join(commands)}.\n"
        )
    return "\n".join(parts)


def main() -> None:
    """Draw and write."""
    start = time.monotonic()
    for module in style.modules():
        style.make(module)
        print(f"{module.__name__} [{time.monotonic() - start:.0f} s]", flush=True)
    target = style.ROOT / "docs" / "gallery.md"
    with records.written_whole(target) as temporary:
        temporary.write_text(page())
    print(f"{len(ORDER)} figures in {style.OUT.relative_to(style.ROOT)}/, {target.relative_to(style.ROOT)}")


if __name__ == "__main__":
    main()
