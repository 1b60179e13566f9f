"""Owns the device. Knows no HTTP and no task name, only digests."""
