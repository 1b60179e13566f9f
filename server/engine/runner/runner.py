"""The runner: plan of a batch, forward, token ids. It knows batches, but no requests' owners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from prefix_store.digest import Digest
from server.engine.attention.base import AttentionBackend, Step
from server.engine.memory.prefix import ResidentPrefix
from server.engine.memory.transfer import ToHost, to_device
from server.engine.params import Logprobs
from server.engine.runner import planner
from server.engine.runner.forward import ModelForward
from server.engine.runner.graphs import Graphs
from server.engine.sampling import logprobs
from server.engine.sampling.logits_processors import process_logits
from server.engine.sampling.logprobs import PendingLogprobs, PromptRows
from server.engine.sampling.sampler import Argmax, SampleRow, argmax, sample
from server.engine.scheduler.batch import Batch


class Handle:
    """A launched step. `sample` makes its token ids and their log-probabilities."""

    def __init__(
        self,
        sample: Callable[[], tuple[Tensor, PendingLogprobs]],
        prompt_logprobs: PendingLogprobs,
    ) -> None:
        self._sample = sample
        self._prompt_logprobs = prompt_logprobs

    def sample(self) -> None:
        """Sample the tokens. Idempotent.

        Call it before the next step is launched, which overwrites the logits.
        """
        _ = self._sampled

    def tokens(self) -> list[int]:
        """Return one token id for each of `Batch.sampled`, `INVALID` if its logits have NaN.

        Waits until the device has run the step.
        """
        token_ids: list[int] = self._sampled[0].wait().tolist()
        return token_ids

    def logprobs(self) -> dict[int, Logprobs]:
        """Return the log-probabilities of these tokens, by id of the requests that want them."""
        return self._sampled[1].wait()

    @cached_property
    def _sampled(self) -> tuple[ToHost, PendingLogprobs]:
        token_ids, logprobs = self._sample()
        return ToHost(token_ids), logprobs

    def prompt_logprobs(self) -> dict[int, Logprobs]:
        """Return the log-probabilities of prompt tokens, by id of the requests that want them."""
        return self._prompt_logprobs.wait()


@dataclass(frozen=True, slots=True)
class RunnerParts:
    """The components of a runner."""

    forward: ModelForward
    backend: AttentionBackend
    prefix_of: Callable[[Digest], ResidentPrefix]
    eos_token_ids: Sequence[int] = ()
    argmax: Argmax = argmax
    """Finds the highest logit of each row."""
    graphs: Graphs | None = None
    """Captured forwards, which are replayed where possible."""


class Runner:
    """Runs batches. `probes` keeps the logits [vocab_size] of the requests that are its keys."""

    def __init__(self, parts: RunnerParts) -> None:
        self.parts = parts
        self.probes: dict[int, Tensor | None] = {}
        self._sampled: dict[int, int] = {}
        self._sampled_ids = torch.empty(0)

    @property
    def embeds(self) -> dict[int, Tensor]:
        """Soft prompts [L, hidden_size], by request id."""
        return self.parts.forward.soft_prompts

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Handle:
        """Run a step; on CUDA only start it, so that the next step can be launched before the
        tokens of this one are known.

        Tokens are sampled here, unless a grammar mask depends on a token in flight: then the caller
        must call `Handle.sample`.
        """
        step = planner.plan(batch, self.parts.prefix_of, self.parts.forward.model.device)
        self._fill_in(batch, step)
        prompt_rows = PromptRows.of(batch, step)
        if prompt_rows.rows:
            logits, prompt_logprobs = self._forward_scoring(step, prompt_rows)
        else:
            logits, prompt_logprobs = self.forward(step), PendingLogprobs([], [])
        self._keep_probed(batch, logits)
        handle = Handle(partial(self._sample, batch, step, logits), prompt_logprobs)
        if not any(chunk.awaits_mask for chunk in batch.sampled):
            handle.sample()
        return handle

    @torch.inference_mode()
    def _sample(self, batch: Batch, step: Step, logits: Tensor) -> tuple[Tensor, PendingLogprobs]:
        rows = [SampleRow(c.seq.sampling, c.num_completion_tokens) for c in batch.sampled]
        processed = process_logits(logits, batch.sampled, step, self.parts.eos_token_ids)
        token_ids = sample(processed, rows, self.parts.argmax)
        self._sampled = {chunk.seq.request_id: row for row, chunk in enumerate(batch.sampled)}
        # An INVALID token fails its request later; until then the next step needs a valid id.
        self._sampled_ids = token_ids.clamp(min=0)
        return token_ids, logprobs.of_sampled(batch, logits, self._sampled_ids)

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        """Plan and run a step, with a graph if possible.

        Returns the logits [num_sampled, vocab_size], which are valid until the next step.
        """
        self.parts.backend.plan(step)
        if self.parts.graphs is not None and not self.parts.forward.has_soft_prompts(step):
            logits = self.parts.graphs.replay(step)
            if logits is not None:
                return logits
        return self.parts.forward(step)

    def _forward_scoring(
        self, step: Step, prompt_rows: PromptRows
    ) -> tuple[Tensor, PendingLogprobs]:
        """Like `forward`, and score prompt tokens, with the logits of a block of rows at a time."""
        forward = self.parts.forward
        self.parts.backend.plan(step)
        hidden = forward.hidden(step)
        columns = (
            to_device(x, torch.long, hidden.device)
            for x in (prompt_rows.rows, prompt_rows.token_ids)
        )
        blocks = zip(*(torch.split(x, logprobs.BLOCK_ROWS) for x in columns), strict=True)
        scored = ((forward.logits(hidden[:, at]), token_ids) for at, token_ids in blocks)
        prompt_logprobs = PendingLogprobs(prompt_rows.requests, scored)
        return forward.logits(hidden[:, step.logit_rows]), prompt_logprobs

    def _fill_in(self, batch: Batch, step: Step) -> None:
        """Fill in the input tokens that the previous step samples: so far only the device has
        them."""
        begin = {span.request_id: span.begin for span in step.spans}
        waiting = [c.seq.request_id for c in batch.chunks if c.input_in_flight]
        if not waiting:
            return
        device = step.input_ids.device
        rows = to_device([begin[request_id] for request_id in waiting], torch.long, device)
        sources = [self._sampled[request_id] for request_id in waiting]
        step.input_ids[0, rows] = self._sampled_ids[to_device(sources, torch.long, device)]

    def _keep_probed(self, batch: Batch, logits: Tensor) -> None:
        for chunk, row in zip(batch.sampled, logits, strict=True):
            if chunk.seq.request_id in self.probes:
                self.probes[chunk.seq.request_id] = row.float().clone()
