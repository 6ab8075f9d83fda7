"""The implementations of the token statistics, each a module with two functions.

    accumulate(logits, temperature, second_order, into=None)    the accumulators of every row, (rows, 6 or 9) float64
    gradient(logits, temperature, top, level, slope)            e^{x/T} (level + slope · x), x = z − top, everywhere

Logits are z, shape (..., V); `vocab.accumulators` says what the sums are and where top, level and slope, one number per
row, come from. `into` holds the sums of another part of the same rows, to be merged with; an implementation may do that
in place. A NaN level makes a row NaN.
"""
