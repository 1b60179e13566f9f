"""A request for text, from its prompt to its answer."""
