"""Certificates by ball arithmetic: what is certified holds for every real number of a stated region."""
