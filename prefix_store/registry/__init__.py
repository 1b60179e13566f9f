"""Tasks, versions, keys and the audit log, in one database."""
