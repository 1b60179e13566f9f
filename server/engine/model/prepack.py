"""Linears with bfloat16 weights in oneDNN's layout, converted once instead of at every call."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.model.numerics import MODULE_LIMITS, agree

logger = logging.getLogger(__name__)


class PrepackedLinear(nn.Module):
    """A frozen `nn.Linear` whose weight is in a layout that only oneDNN reads."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


def prepack(model: PreTrainedModel) -> int:
    """Replace the linears of a bfloat16 model in place; returns the number replaced.

    The operators are private to torch: if they are missing, or do not agree with the plain linear,
    the model is left unchanged.
    """
    if model.dtype is not torch.bfloat16:
        return 0
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    try:
        packed = [PrepackedLinear(linear) for _, _, linear in linears]
        with torch.inference_mode():
            all_agree = all(map(_agrees, (linear for _, _, linear in linears), packed))
    except (AttributeError, RuntimeError) as exc:
        logger.warning("prepacked linears are not available: %s", exc)
        return 0
    if not all_agree:
        logger.warning("prepacked linears are not used: they disagree with plain ones here")
        return 0
    for (parent, name, _), module in zip(linears, packed, strict=True):
        setattr(parent, name, module)
    return len(packed)


def _agrees(linear: nn.Linear, packed: PrepackedLinear) -> bool:
    x = torch.linspace(-1, 1, 2 * linear.in_features).view(2, -1).to(linear.weight.dtype)
    return agree(linear(x), packed(x), MODULE_LIMITS[x.dtype])
