"""The HTTP API: parse, authorise, answer. Knows no tensor."""
