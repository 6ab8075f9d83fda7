"""The statements, one list per chapter of the theory."""
