"""The forward of a model with compiled layers, without the wrappers of transformers.

Wrappers, masks and output classes are a lot of Python, and reading the weights evicts it from the
CPU's caches between two steps. It cost one of the ten milliseconds of a step with one request.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


class BareForward:
    """Embedding, layers, last norm and head of a Llama-like model.

    Equal to `model(...).logits[0]` only if the model does nothing else: compare them before use.
    """

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
        """Return the logits of the rows `logits_to_keep`: [num_rows, vocab_size]."""
        hidden = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        angles = self._rotary(hidden, position_ids=position_ids)
        hidden = self._layers.forward(hidden, position_embeddings=angles)
        logits: Tensor = self._head.forward(self._norm(hidden[:, logits_to_keep]))[0]
        return logits
