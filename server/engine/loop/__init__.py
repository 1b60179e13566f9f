"""The step loop, and the other work that it schedules: grammars, prefix compiles, verification."""
