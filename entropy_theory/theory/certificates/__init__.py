"""Certificates: statements proved over whole regions by ball arithmetic (the extra ``certify``)."""
