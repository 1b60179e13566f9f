"""What the engine reaches on a CUDA device. Each module has `run(scale) -> dict`.

Imports only what a machine for GPU work has anyway: torch, triton, transformers, numpy.
"""
