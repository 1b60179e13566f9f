"""Content-addressed bytes: in a folder, in an object store, cached."""
