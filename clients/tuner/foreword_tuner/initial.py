"""Initialization of what is trained, from real text or at random, and the scale of its steps.

The values of one layer are forty times as large as those of another (SmolLM2-135M), and keys are
larger still, but Adam's steps have the size of the learning rate regardless of scale. So the
trained parameter is the distance from the initial value, in units of each layer's own keys and
values. Then one learning rate fits all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import DynamicCache, PreTrainedModel

from foreword_tuner.methods import Method

ADAPTER = "default"


class Distance(nn.Module):
    """Parametrization of a parameter as `begin + unit * distance`."""

    def __init__(self, begin: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.register_buffer("begin", begin.clone())
        self.register_buffer("unit", unit.clone())

    def forward(self, distance: Tensor) -> Tensor:
        begin: Any = self.begin
        unit: Any = self.unit
        moved: Tensor = begin + unit * distance
        return moved

    def right_inverse(self, parameter: Tensor) -> Tensor:
        begin: Any = self.begin
        unit: Any = self.unit
        distance = (parameter - begin) / unit
        return torch.where(unit == 0, 0.0, distance)


def fill(token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Return the first `num_tokens` tokens of a text. A short text is repeated."""
    times = -(-num_tokens // len(token_ids))
    return (list(token_ids) * times)[:num_tokens]


@torch.no_grad()
def keys_and_values(base: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """Compute a text's keys and values, [num_layers, 2, num_kv_heads, num_tokens, head_dim]."""
    cache = DynamicCache(config=base.config)
    ids = torch.tensor([token_ids], device=base.device)
    base(input_ids=ids, past_key_values=cache, use_cache=True)
    layers: Any = cache.layers
    return torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in layers])


@torch.no_grad()
def from_text(model: PeftModel, method: Method, token_ids: Sequence[int]) -> None:
    """Initialize virtual tokens from a text: its keys and values, or its embeddings."""
    base = model.get_base_model()
    if method.is_kv:
        layers = [(keys[None], values[None]) for keys, values in keys_and_values(base, token_ids)]
        initialize_kv_prefix_from_past_key_values(model, past_key_values=layers)
    else:
        embeddings = base.get_input_embeddings()(torch.tensor(token_ids, device=base.device))
        model.prompt_encoder[ADAPTER].embedding.weight.copy_(embeddings)


def measure_in_units(model: PeftModel, method: Method, *, first_layer: int = 0) -> int:
    """Parametrize the parameters as distances from their current values. Those of layers below
    `first_layer` are fixed. Returns the number of parameters that are not.
    """
    encoder = model.prompt_encoder[ADAPTER]
    if method is Method.CARTRIDGE:
        module, name = encoder, "trainable_embedding"
    else:
        module, name = encoder.embedding, "weight"
    begin = getattr(module, name).detach()
    if method.is_kv:
        unit = _rms_of_slots(begin, model)
        unit[:, : unit.shape[1] // _num_layers(model) * first_layer] = 0
    else:
        unit = _rms_of_embeddings(begin, model)
    parametrize.register_parametrization(module, name, Distance(begin, unit))
    return int((unit.expand(begin.shape) != 0).sum())


def _num_layers(model: PeftModel) -> int:
    config: Any = model.peft_config[ADAPTER]
    return int(config.num_layers)


def _rms_of_slots(begin: Tensor, model: PeftModel) -> Tensor:
    """Return the RMS of the keys and of the values of each layer, [1, 2 * num_layers * width]."""
    slots = begin.view(len(begin), 2 * _num_layers(model), -1)
    rms = slots.pow(2).mean(dim=(0, 2)).sqrt()
    return rms.repeat_interleave(slots.shape[2])[None]


def _rms_of_embeddings(begin: Tensor, model: PeftModel) -> Tensor:
    table: Tensor = model.get_base_model().get_input_embeddings().weight
    return table.float().pow(2).mean().sqrt().to(begin)[None, None]
