"""A model's forward in two parts, so that the logits of many rows need not exist at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


class SplitForward:
    """`hidden`, then `logits` of some of its rows: together they equal the model's forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        decoder = model.get_decoder()
        # Llama 4 returns itself: its class names the wrong attribute for its decoder.
        self._decoder: Any = decoder if decoder is not model else model.get_submodule("model")
        self._output: type[ModelOutput] = ModelOutput
        """Class of the decoder's output. A mixture of experts reads more than the hidden states."""

    def hidden(self, **inputs: Any) -> Tensor:
        """Return the output of the last norm: [1, T, hidden_size]."""
        output = self._decoder(**inputs, use_cache=False)
        self._output = type(output)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits [T, vocab_size] of rows [1, T, hidden_size] of `hidden`.

        This runs the model's own forward without its layers, because families apply different
        operations after the head, such as a soft cap or a scale.
        """

        def computed(*args: Any, **kwargs: Any) -> ModelOutput:
            return self._output(last_hidden_state=hidden)

        self._decoder.forward = computed
        try:
            logits: Tensor = self._model(inputs_embeds=hidden, use_cache=False).logits
        finally:
            del self._decoder.forward
        return logits[0]
