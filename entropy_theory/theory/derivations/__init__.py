"""Derivations of the statements by computer algebra: each step is checked, nothing is sampled."""
