"""Log-probabilities in the formats of `/generate`, OpenAI's completions and OpenAI's chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.engine.params import Logprobs
from server.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Replaces lower values, such as -inf, which JSON cannot express; as in vLLM."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A token, its log-probability if known, and the most likely tokens at its position."""

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]]


def scored(token_ids: Sequence[int], scores: Logprobs | None) -> list[Scored]:
    """Pair tokens with their log-probabilities. Leading tokens beyond `scores` have none."""
    columns = zip(*scores, strict=True) if scores is not None else iter(())
    rows = [
        (max(LOWEST, own), [(i, max(LOWEST, x)) for i, x in zip(ids, logprobs, strict=True)])
        for own, ids, logprobs in columns
    ]
    num_unknown = len(token_ids) - len(rows)
    unknown = [Scored(token_id, None, []) for token_id in token_ids[:num_unknown]]
    known = zip(token_ids[num_unknown:], rows, strict=True)
    return unknown + [Scored(token_id, own, top) for token_id, (own, top) in known]


def plain(tokens: Sequence[Scored], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens in the format of `/generate`."""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        text = tokenizer.token_text(token_id)
        return {"token_id": token_id, "token": text, "logprob": logprob}

    return [
        entry(t.token_id, t.logprob) | {"top": [entry(i, logprob) for i, logprob in t.top]}
        for t in tokens
    ]


def of_completion(
    tokens: Sequence[Scored], tokenizer: Tokenizer, offset: int, *, as_ids: bool
) -> tuple[dict[str, Any], int]:
    """Tokens in the format of OpenAI's completions, `offset` characters into the text.

    Returns the offset of the text's end too. Of several tokens with the same text, such as parts of
    characters, only the most likely is shown.
    """
    offsets: list[int] = []
    top: list[dict[str, float] | None] = []
    for t in tokens:
        offsets.append(offset)
        offset += _num_chars(tokenizer.token_bytes(t.token_id, at_start=offset == 0))
        if t.logprob is None:
            top.append(None)
            continue
        likeliest: dict[str, float] = {}
        for token_id, logprob in [*t.top, (t.token_id, t.logprob)]:
            likeliest.setdefault(_name(token_id, tokenizer, as_ids=as_ids), logprob)
        top.append(likeliest)
    logprobs = {
        "text_offset": offsets,
        "token_logprobs": [t.logprob for t in tokens],
        "tokens": [_name(t.token_id, tokenizer, as_ids=as_ids) for t in tokens],
        "top_logprobs": top,
    }
    return logprobs, offset


def of_chat(
    tokens: Sequence[Scored], tokenizer: Tokenizer, offset: int, *, as_ids: bool
) -> tuple[dict[str, Any], int]:
    """Tokens in the format of OpenAI's chat completions, `offset` characters into the text.

    Returns the offset of the text's end too. The `bytes` of all tokens, joined, are the text's; a
    special token has none.
    """

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        name = _name(token_id, tokenizer, as_ids=as_ids)
        raw = tokenizer.token_bytes(token_id, at_start=offset == 0)
        return {"token": name, "logprob": logprob, "bytes": list(raw)}

    content: list[dict[str, Any]] = []
    for t in tokens:
        top = [entry(token_id, logprob) for token_id, logprob in t.top]
        content.append(entry(t.token_id, t.logprob) | {"top_logprobs": top})
        offset += _num_chars(bytes(content[-1]["bytes"]))
    return {"content": content, "refusal": None}, offset


def _num_chars(raw: bytes) -> int:
    """Number of characters that begin in a part of a text's UTF-8."""
    return sum(byte & 0xC0 != 0x80 for byte in raw)


def _name(token_id: int, tokenizer: Tokenizer, *, as_ids: bool) -> str:
    return f"token_id:{token_id}" if as_ids else tokenizer.token_text(token_id)
