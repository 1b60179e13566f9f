"""HTTP: parse, authorise, answer. Knows no tensor."""
