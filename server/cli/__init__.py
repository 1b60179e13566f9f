"""The `foreword` commands of the server: serve, keys, audit, doctor."""
