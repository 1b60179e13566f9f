"""The fingerprint of a base model, as servers compute it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_MAX_SAMPLES = 4096


def fingerprint(model: nn.Module) -> str:
    """Return what `GET /info` of a server with the same weights shows: `sha256:<hex>` over name,
    shape and some values, in bfloat16, of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        values = parameter.detach().flatten()
        some = values[:: max(1, len(values) // _MAX_SAMPLES)][:_MAX_SAMPLES]
        digest.update(some.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
