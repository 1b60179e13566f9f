"""One step on the device: plan, forward, sampled tokens."""
