"""Statistics of vocabulary-sized softmaxes: many positions, any device, torch."""

from entropy_theory.vocab.from_hidden import token_statistics_from_hidden
from entropy_theory.vocab.implementations import choose_implementation
from entropy_theory.vocab.sharded import token_statistics_sharded
from entropy_theory.vocab.statistics import TokenStatistics, token_statistics

__all__ = [
    "TokenStatistics",
    "choose_implementation",
    "token_statistics",
    "token_statistics_from_hidden",
    "token_statistics_sharded",
]
