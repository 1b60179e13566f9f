"""Forward pass of the frozen model with the trained parameters: the loss of completions only.

PEFT's own forward computes the logits of all tokens, although only completions have targets, and
copies the prefix for each row. Here the head gets only the rows with targets, and attention gets
one prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import ModelOutput

from foreword_tuner.attention import SharedPrefixAttention
from foreword_tuner.batches import Batch, pack
from foreword_tuner.cut import Cut
from foreword_tuner.encoding import Example
from foreword_tuner.initial import ADAPTER
from foreword_tuner.methods import Method

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one batch."""

    loss: Tensor
    """Sum over the completions' tokens."""
    num_targets: int
    num_exact: int
    """Examples whose whole completion greedy decoding would produce."""


class Forward(Protocol):
    """The forward pass of a family of models."""

    def __call__(self, examples: Sequence[Example]) -> Outcome: ...


class DecoderForward:
    """Forward pass of decoder-only models with `attention` in their layers. Layers below
    `first_layer` have a constant prefix, or none."""

    def __init__(
        self,
        model: PeftModel,
        method: Method,
        attention: SharedPrefixAttention,
        pad_id: int,
        *,
        first_layer: int = 0,
    ) -> None:
        self._model = model
        self._method = method
        self._attention = attention
        self._pad_id = pad_id
        self._base: Any = model.get_base_model()
        self._decoder: Any = self._base.get_decoder()
        self._cut = Cut(self._decoder, first_layer) if first_layer else None
        self._output: type[ModelOutput] = ModelOutput
        """Type of the decoder's output: a mixture of experts reads more of its fields."""

    def __call__(self, examples: Sequence[Example]) -> Outcome:
        batch = pack(examples, self._pad_id).to(self._base.device)
        return _outcome(self.logits(batch), batch)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._base.device
        return device

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of the tokens that precede a target, [N, vocab_size]."""
        if self._method.is_kv:
            return self.logits_with(batch, self.keys_and_values())
        self._attention.prefix = None
        if self._method in (Method.PROMPT, Method.PTUNING):
            return self._run(batch, inputs_embeds=self._with_embeddings(batch.token_ids))
        return self._run(batch, input_ids=batch.token_ids)

    def logits_with(self, batch: Batch, prefix: Tensor) -> Tensor:
        """Like `logits`, with a given prefix [num_layers, 2, num_kv_heads, L, head_dim]."""
        self._attention.prefix = prefix
        return self._run(batch, prefix.shape[3], input_ids=batch.token_ids)

    def _run(self, batch: Batch, start: int = 0, **inputs: Any) -> Tensor:
        width = next(iter(inputs.values())).shape[1]
        inputs["position_ids"] = torch.arange(start, start + width, device=self.device)[None]
        inputs["use_cache"] = False
        output = self._cut(batch, **inputs) if self._cut else self._decoder(**inputs)
        self._output = type(output)
        hidden: Tensor = output.last_hidden_state  # [B, T, hidden_size]
        own = hidden[:, width - batch.token_ids.shape[1] :]
        return self._head(own.flatten(0, 1)[batch.rows])

    def keys_and_values(self) -> Tensor:
        """Return the trained prefix [num_layers, 2, num_kv_heads, L, head_dim] in the model's
        dtype."""
        config: Any = self._model.peft_config[ADAPTER]
        flat = self._virtual()
        heads = config.num_attention_heads
        slots = flat.view(len(flat), config.num_layers, 2, heads, config.token_dim // heads)
        return slots.permute(1, 2, 3, 0, 4).to(self._base.dtype)

    def _with_embeddings(self, token_ids: Tensor) -> Tensor:
        embeddings = self._base.get_input_embeddings()(token_ids)
        virtual = self._virtual().to(embeddings.dtype)
        return torch.cat((virtual.expand(len(token_ids), -1, -1), embeddings), dim=1)

    def _virtual(self) -> Tensor:
        """Return the output of PEFT's prompt encoder, [L, columns]."""
        tokens = self._model.prompt_tokens[ADAPTER].to(self._base.device)[None]
        virtual: Tensor = self._model.prompt_encoder[ADAPTER](tokens)[0]
        return virtual

    def _head(self, hidden: Tensor) -> Tensor:
        """Compute logits with the model's own forward, without its layers: some models scale or cap
        their logits."""

        def computed(*args: Any, **kwargs: Any) -> ModelOutput:
            return self._output(last_hidden_state=hidden[None])

        self._decoder.forward = computed
        try:
            logits: Tensor = self._base(inputs_embeds=hidden[None], use_cache=False).logits
        finally:
            del self._decoder.forward
        return logits[0]


class Seq2SeqForward:
    """Forward pass of encoder-decoder models such as T5, with PEFT's own forward."""

    def __init__(self, model: PeftModel, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id

    def __call__(self, examples: Sequence[Example]) -> Outcome:
        device = self._model.get_base_model().device
        prompts = _padded([e.prompt_ids for e in examples], self._pad_id).to(device)
        labels = _padded([e.completion_ids for e in examples], IGNORED).to(device)
        lengths = torch.tensor([len(e.prompt_ids) for e in examples], device=device)
        mask = (torch.arange(prompts.shape[1], device=device) < lengths[:, None]).long()
        logits = self._model(input_ids=prompts, attention_mask=mask, labels=labels).logits
        owners, places = (labels != IGNORED).nonzero(as_tuple=True)
        targets = labels[owners, places]
        numbers = [example.number for example in examples]
        batch = Batch(prompts, places, targets, owners, numbers, lengths.tolist())
        return _outcome(logits[owners, places], batch)


def _padded(rows: Sequence[list[int]], pad_id: int) -> Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad_id)


def _outcome(logits: Tensor, batch: Batch) -> Outcome:
    logits = logits.float()
    loss = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
    return Outcome(loss, len(batch.targets), num_exact(logits, batch))


def num_exact(logits: Tensor, batch: Batch) -> int:
    """Count examples whose targets all have the highest logit."""
    wrong = logits.detach().argmax(dim=-1) != batch.targets
    return batch.num_examples - len(set(batch.owners[wrong].tolist()))
