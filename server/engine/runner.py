"""A planned batch -> forward -> token ids. Knows batches, not who asked for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefix_store.digest import Digest
from server.engine import planner
from server.engine.attention.base import AttentionBackend, Step
from server.engine.batch import Batch
from server.engine.residency import ResidentPrefix
from server.engine.sampler import SampleRow, sample


class Runner:
    """Owns the model. `embeds` holds soft prompts [L, hidden_size], by request id; `probes` keeps
    the logits [vocab_size] of those requests that it names."""

    def __init__(
        self,
        model: PreTrainedModel,
        backend: AttentionBackend,
        prefix_of: Callable[[Digest], ResidentPrefix],
    ) -> None:
        self._model = model
        self._backend = backend
        self._prefix_of = prefix_of
        self.embeds: dict[int, Tensor] = {}
        self.probes: dict[int, Tensor | None] = {}

    def run(self, batch: Batch) -> list[int]:
        """One token for each of `batch.sampled`, `sampler.INVALID` where the logits hold NaN."""
        step = planner.plan(batch, self._prefix_of, str(self._model.device))
        logits = self.forward(step)
        self._keep_probed(batch, logits)
        rows = [SampleRow(c.seq.sampling, c.seq.num_completion_tokens) for c in batch.sampled]
        return sample(logits, rows) if rows else []

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        """Logits of the rows that are sampled: [num_sampled, vocab_size]."""
        self._backend.plan(step)
        output = self._model(
            **self._inputs(step),
            position_ids=step.position_ids,
            use_cache=False,
            logits_to_keep=step.logit_rows,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _keep_probed(self, batch: Batch, logits: Tensor) -> None:
        for chunk, row in zip(batch.sampled, logits, strict=True):
            if chunk.seq.request_id in self.probes:
                self.probes[chunk.seq.request_id] = row.float().clone()

    def _inputs(self, step: Step) -> dict[str, Tensor]:
        """Token ids, or embeddings where some rows are a soft prompt, which has no ids."""
        soft = [span for span in step.spans if span.request_id in self.embeds]
        if not soft:
            return {"input_ids": step.input_ids}
        embeds = self._model.get_input_embeddings()(step.input_ids)  # [1, T, hidden_size]
        for span in soft:
            rows = self.embeds[span.request_id][span.start : span.start + span.num_tokens]
            embeds[0, span.begin : span.end] = rows
        return {"inputs_embeds": embeds}
