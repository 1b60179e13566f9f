"""Trains a prefix on a frozen base model and pushes it: from a data file to a served task."""
