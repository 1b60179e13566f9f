"""The database of a registry: connections, transactions and tables."""
