"""What a soak asks for: greedy requests whose answers depend on the version alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.soak.ledger import Answer

GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
_STORY = "The harbour was quiet, and the boats lay in a row along the old stone wall. " * 7
_QUESTION = [{"role": "user", "content": "Name three colours."}]
_PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Ben"]}, "age": {"enum": [1, 22, 333]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_JSON = {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request without its target."""

    name: str
    path: str
    body: Mapping[str, Any]

    def params(self, task: str | None, version: int | None) -> dict[str, str]:
        """Return the query that names the target, for `/generate`."""
        if self.path != GENERATE or task is None:
            return {}
        return {"task": task} | ({"version": str(version)} if version is not None else {})

    def json(self, task: str | None, version: int | None, model: str) -> dict[str, Any]:
        """Return the body. `model` is the base model's name, for a request without a task."""
        if self.path == GENERATE:
            return {"return_token_ids": True, **self.body}
        name = model if task is None else task
        return {"model": name if version is None else f"{name}@{version}", **self.body}

    def answer(self, reply: Mapping[str, Any]) -> Answer:
        """Read a whole answer."""
        if self.path == GENERATE:
            return _generated(reply)
        choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
        texts = [c["text"] if "text" in c else c["message"]["content"] for c in choices]
        reasons = [choice["finish_reason"] for choice in choices]
        scores = [s for c in choices for s in _openai_scores(c.get("logprobs") or {})]
        return Answer(_exact(texts=texts, reasons=reasons), tuple(scores))

    def streamed(self, events: Iterable[tuple[str, Any]]) -> Answer:
        """Read the events of a stream that has ended well."""
        if self.path == GENERATE:
            listed = list(events)
            tokens = [data for event, data in listed if event == "token"]
            text = "".join(data["text"] for data in tokens)
            token_ids = [i for data in tokens for i in data["token_ids"] or ()]
            whole = _generated(listed[-1][1] | {"text": text, "token_ids": token_ids})
            return Answer(whole.exact)
        texts: dict[int, str] = defaultdict(str)
        reasons: dict[int, str] = {}
        for choice in (choice for _, data in events for choice in data["choices"]):
            index = choice["index"]
            texts[index] += (
                choice["text"] if "text" in choice else (choice["delta"].get("content") or "")
            )
            reasons[index] = choice["finish_reason"] or reasons.get(index, "")
        order = sorted(texts)
        return Answer(_exact(texts=[texts[i] for i in order], reasons=[reasons[i] for i in order]))


def _generated(reply: Mapping[str, Any]) -> Answer:
    ranking = reply.get("ranking") or []
    entries = (*ranking, *(reply.get("logprobs") or ()), *(reply.get("prompt_logprobs") or ()))
    scores = [entry["logprob"] for entry in entries if entry["logprob"] is not None]
    exact = _exact(
        text=reply["text"],
        token_ids=reply["token_ids"],
        reason=reply["finish_reason"],
        num_prompt_tokens=reply["usage"]["prompt_tokens"],
    )
    return Answer(exact, tuple(scores))


def _openai_scores(logprobs: Mapping[str, Any]) -> list[float]:
    if "content" in logprobs:
        return [entry["logprob"] for entry in logprobs["content"] or ()]
    return [score for score in logprobs.get("token_logprobs", ()) if score is not None]


def _exact(**fields: Any) -> str:
    return json.dumps(fields, sort_keys=True)


ASKS = (
    Ask("defaults", GENERATE, {"prompt": "My favourite place in the world is"}),
    Ask("short", GENERATE, {"prompt": "Once upon a time", "max_tokens": 6}),
    Ask("tokens", GENERATE, {"prompt": [504, 1165, 2744, 314], "max_tokens": 10}),
    Ask("long", GENERATE, {"prompt": f"{_STORY}Then", "max_tokens": 12, "ignore_eos": True}),
    Ask("long, another end", GENERATE, {"prompt": f"{_STORY}At dawn", "max_tokens": 6}),
    Ask("many tokens", GENERATE, {"prompt": "One, two,", "max_tokens": 40, "ignore_eos": True}),
    Ask("messages", GENERATE, {"messages": _QUESTION, "max_tokens": 8}),
    Ask("stop", GENERATE, {"prompt": "I went to the", "max_tokens": 24, "stop": [".", ","]}),
    Ask(
        "penalties",
        GENERATE,
        {"prompt": "La la la", "max_tokens": 8, "repetition_penalty": 1.3, "frequency_penalty": 1},
    ),
    Ask(
        "rank",
        GENERATE,
        {"prompt": "The film was great fun: it is", "rank": {"texts": [" good.", " bad.", " so."]}},
    ),
    Ask("choice", GENERATE, {"prompt": "Yes or no?", "choice": ["yes", "no"], "max_tokens": 8}),
    Ask("schema", GENERATE, {"prompt": "A person:", "response_format": _JSON, "max_tokens": 30}),
    Ask(
        "logprobs",
        GENERATE,
        {"prompt": "The capital of", "max_tokens": 4, "logprobs": 2, "prompt_logprobs": 1},
    ),
    Ask(
        "batch",
        COMPLETIONS,
        {"prompt": ["The sea is", "The sky is"], "n": 2, "max_tokens": 5, "temperature": 0},
    ),
    Ask(
        "echo",
        COMPLETIONS,
        {"prompt": "Two and two", "echo": True, "logprobs": 1, "max_tokens": 3, "temperature": 0},
    ),
    Ask(
        "chat",
        CHAT,
        {"messages": _QUESTION, "max_tokens": 8, "logprobs": True, "top_logprobs": 1,
         "temperature": 0},
    ),
    Ask(
        "chat schema",
        CHAT,
        {"messages": _QUESTION, "response_format": _JSON, "max_tokens": 30, "temperature": 0},
    ),
)  # fmt: skip
BY_NAME = {ask.name: ask for ask in ASKS}
LEAVES = tuple(BY_NAME[name] for name in ("long", "many tokens", "schema", "rank"))
"""Asks that take long enough for a client to leave in between."""
