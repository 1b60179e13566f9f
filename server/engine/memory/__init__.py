"""Memory for keys and values: the KV pool, resident prefixes, transfers."""
