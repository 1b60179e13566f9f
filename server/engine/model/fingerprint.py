"""The fingerprint of a base model, which binds a prefix to the weights it was made for."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_MAX_SAMPLES = 4096


def fingerprint(model: nn.Module) -> str:
    """Return `sha256:<hex>` over every parameter's name, shape and up to 4,096 of its values.

    The values are evenly spaced and rounded to bfloat16, so that the fingerprint does not depend on
    the serving dtype. Fine-tuning changes it; so does a different vocabulary size.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        flat = parameter.detach().flatten()
        samples = flat[:: max(1, len(flat) // _MAX_SAMPLES)][:_MAX_SAMPLES]
        digest.update(samples.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
