"""The checks behind the statements, one module per kind; laws and exactness hold those beyond the paper.

A check calls the numeric functions through their module (`discriminant.baseline`, never a bare name), so that a test
can plant an error in one of them and see the check fail. No check uses the formula under test as its own oracle.
"""
