"""The inference server: one frozen base model, a prefix for every task."""
