"""Prefixes and their store: a library that needs no server."""
