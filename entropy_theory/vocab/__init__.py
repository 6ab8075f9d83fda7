"""Statistics of vocabulary-sized softmaxes: many positions, any device, torch."""

from entropy_theory.vocab.statistics import TokenStatistics, token_statistics

__all__ = ["TokenStatistics", "token_statistics"]
