"""Shared HTTP parts: middleware, authentication, limits, errors, event streams."""
