"""Errors of the benchmarks."""


class BenchError(Exception):
    """One line for the user."""
