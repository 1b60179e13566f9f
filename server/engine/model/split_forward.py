"""A model's forward in two halves, so that the logits of many rows need not exist at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


class SplitForward:
    """`hidden`, then `logits` of some rows of it; together what the model computes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        decoder = model.get_decoder()
        # Llama 4 names itself: its class says that its layers lie elsewhere than they do.
        self._decoder: Any = decoder if decoder is not model else model.get_submodule("model")
        self._output: type[ModelOutput] = ModelOutput
        """What the decoder gives: the head's forward of a mixture of experts reads more of it."""

    def hidden(self, **inputs: Any) -> Tensor:
        """What comes out of the last norm: [1, T, hidden_size]."""
        output = self._decoder(**inputs, use_cache=False)
        self._output = type(output)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Of what `hidden` gave: [1, T, hidden_size] -> [T, vocab_size].

        By the model's own forward, with its layers left out: families do different things after
        the head, such as a soft cap or a scale.
        """

        def computed(*args: Any, **kwargs: Any) -> ModelOutput:
            return self._output(last_hidden_state=hidden)

        self._decoder.forward = computed
        try:
            logits: Tensor = self._model(inputs_embeds=hidden, use_cache=False).logits
        finally:
            del self._decoder.forward
        return logits[0]
