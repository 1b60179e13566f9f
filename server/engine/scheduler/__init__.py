"""Scheduling: which sequences run next and which pages they get. No tensors here."""
