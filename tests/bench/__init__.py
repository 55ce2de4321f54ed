"""Figures, not tests: run by hand and by `make bench`. Each is a ratio to a bare limit, taken in the same run."""
