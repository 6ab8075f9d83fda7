"""One policy at one position, in float64 and exact: the formulas, their derivations and the checks that hold them.

Nothing is re-exported here, because the module `discriminant` and its function `discriminant` share a name. The
numeric functions are public names of `entropy_theory` itself.
"""
