"""One step on the device: a plan, a forward, sampled tokens."""
