"""The step loop, and the work that runs beside generation in it."""
