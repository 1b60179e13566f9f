"""The forward of the model over a planned step, with soft prompts in place of token ids."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedModel

from server.engine.attention.base import QuerySpan, Step
from server.engine.model.split_forward import SplitForward


class ModelForward:
    """Runs the model on steps that the attention backend has planned.

    `bare_forward`, if given, replaces the model's own forward. `soft_prompts` holds embeddings
    [L, hidden_size] by id of the requests that have them instead of token ids.
    """

    def __init__(
        self, model: PreTrainedModel, bare_forward: Callable[..., Tensor] | None = None
    ) -> None:
        self.model = model
        self.soft_prompts: dict[int, Tensor] = {}
        self._bare_forward = bare_forward
        self._split_forward = SplitForward(model)

    def __call__(self, step: Step) -> Tensor:
        """Return the logits of `step.logit_rows`: [num_sampled, vocab_size]."""
        inputs = self._inputs(step) | {
            "position_ids": step.position_ids,
            "logits_to_keep": step.logit_rows,
        }
        if self._bare_forward is not None:
            return self._bare_forward(**inputs)
        logits: Tensor = self.model(**inputs, use_cache=False).logits[0]
        return logits

    def hidden(self, step: Step) -> Tensor:
        """Return the output of the last norm for all rows: [1, T, hidden_size]."""
        return self._split_forward.hidden(**self._inputs(step), position_ids=step.position_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [T, vocab_size] of rows [1, T, hidden_size] of `hidden`."""
        return self._split_forward.logits(hidden)

    def has_soft_prompts(self, step: Step) -> bool:
        return bool(self._soft_spans(step))

    def _soft_spans(self, step: Step) -> list[QuerySpan]:
        return [span for span in step.spans if span.request_id in self.soft_prompts]

    def _inputs(self, step: Step) -> dict[str, Tensor]:
        """Return token ids, or embeddings if some rows are of a soft prompt, which has no ids."""
        spans = self._soft_spans(step)
        if not spans:
            return {"input_ids": step.input_ids}
        embeds = self.model.get_input_embeddings()(step.input_ids)  # [1, T, hidden_size]
        for span in spans:
            rows = self.soft_prompts[span.request_id][span.num_computed_tokens : span.seq_len]
            embeds[0, span.begin : span.end] = rows
        return {"inputs_embeds": embeds}
