"""How the compiled steps, for the CPU and for the GPU, lay out what they keep and record of a policy."""

TOP, TOTAL, MEAN, ENTROPY, BASELINE, TAIL, TAIL_BASELINE, MEAN_S, MEAN_S_C = range(9)
"""What is kept of a policy: max z, Z, E_p[d], H, N, 1 − p_top, the part of N from the other tokens; and the means of S
and S_c over the sampled ones."""

STATE = 9

RECORDS = 12
"""Numbers that a whole step records of a policy: ΔH, its first and second order, H, the means over the group of R, S,
S_c and |r − 1|, and how many tokens are in each quadrant of (A, S_c)."""

RECORD_OF_S = 5
"""The place among them of the mean of S."""

EPSILON = 2.0**-52
"""Of float64: advantages sum to zero up to G of it, relative to the sum of their sizes."""
