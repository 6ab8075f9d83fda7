"""Figures, drawn from data."""

from entropy_theory.report.figures.drawing import (
    COLOURS,
    SMOOTHED_STEPS,
    Theme,
    centring,
    figure_function,
    four_conditions,
    new_figure,
    prediction_scatter,
    save,
    simulation,
    style,
    to_svg,
    training_curves,
)

__all__ = [
    "COLOURS",
    "SMOOTHED_STEPS",
    "Theme",
    "centring",
    "figure_function",
    "four_conditions",
    "new_figure",
    "prediction_scatter",
    "save",
    "simulation",
    "style",
    "to_svg",
    "training_curves",
]
