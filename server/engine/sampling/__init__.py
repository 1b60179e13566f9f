"""Logits to tokens: processors, grammar masks, log-probabilities."""
