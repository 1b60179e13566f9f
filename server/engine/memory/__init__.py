"""Keys and values on the device: the pool, prefixes, transfers."""
