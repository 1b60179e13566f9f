"""What can go wrong before there is anything to measure."""


class BenchError(Exception):
    """One line for the user."""
