"""What transformers computes for a prompt, to compare answers with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, RepetitionPenaltyLogitsProcessor


class Reference:
    """transformers alone, without a prefix or after the task's text."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, text: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.inference_mode():
            self._cache = model(ids, use_cache=True).past_key_values

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text).input_ids
        return ids

    @torch.inference_mode()
    def logits(self, token_ids: list[int], *, after_text: bool) -> Tensor:
        """Logits after every token: [len(token_ids), vocab_size]."""
        cache = copy.deepcopy(self._cache) if after_text else DynamicCache()
        output = self.model(torch.tensor([token_ids]), past_key_values=cache)
        logits: Tensor = output.logits[0]
        return logits

    def logprobs(self, token_ids: list[int], *, after_text: bool) -> Tensor:
        """Log-probabilities of the tokens from the second on: [len(token_ids) - 1]."""
        logprobs = self.logits(token_ids, after_text=after_text)[:-1].log_softmax(-1)
        return logprobs.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]


def penalised(
    reference: Reference, prompt: list[int], num_new: int, asked: dict[str, Any]
) -> list[int]:
    """Greedy tokens after the task's text, with penalties and bias by their definitions."""
    token_ids = list(prompt)
    for _ in range(num_new):
        logits = reference.logits(token_ids, after_text=True)[-1].clone()
        for token_id, bias in asked.get("logit_bias", {}).items():
            logits[int(token_id)] += bias
        if factor := asked["extra_body"].get("repetition_penalty"):
            processor = RepetitionPenaltyLogitsProcessor(factor)
            logits = processor(torch.tensor([token_ids]), logits[None])[0]
        made = torch.tensor(token_ids[len(prompt) :], dtype=torch.long)
        counts = made.bincount(minlength=len(logits))
        logits -= asked.get("frequency_penalty", 0.0) * counts
        logits -= asked.get("presence_penalty", 0.0) * (counts > 0)
        token_ids.append(int(logits.argmax()))
    return token_ids[len(prompt) :]
