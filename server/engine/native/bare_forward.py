"""The forward of a model with compiled layers, without what transformers does around it.

Its wrappers, masks and outputs are a lot of Python, which the weights have driven out of the caches
by the next step: a millisecond, of the ten that a step of one request takes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


class BareForward:
    """Gives `model(...).logits[0]`, if the model does no more than this: compare them first."""

    def __init__(self, model: PreTrainedModel) -> None:
        decoder: Any = model.model
        self._embed = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        [self._layers] = decoder.layers
        self._norm = decoder.norm
        self._head: Any = model.lm_head

    def __call__(
        self,
        *,
        position_ids: Tensor,
        logits_to_keep: Tensor,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Logits of those rows: [num_rows, vocab_size]. Takes what the model's forward takes."""
        hidden = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        angles = self._rotary(hidden, position_ids=position_ids)
        hidden = self._layers.forward(hidden, position_embeddings=angles)
        logits: Tensor = self._head.forward(self._norm(hidden[:, logits_to_keep]))[0]
        return logits
