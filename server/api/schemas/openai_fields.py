"""Fields that OpenAI's and vLLM's clients send and this server does not act on.

A field of such a client changes nothing and is ignored, or would change the answer and is refused.
A field in no table is refused, whatever its value; null always asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from prefix_store.wording import meant
from server.errors import UnsupportedParameter


@dataclass(frozen=True, slots=True)
class Unserved:
    """A field that this server does not act on, and the values of it that change nothing."""

    no_ops: tuple[Any, ...] = ()
    is_ignored: bool = False
    """Whether no value changes the answer."""

    def allows(self, value: object) -> bool:
        return value is None or self.is_ignored or value in self.no_ops


IGNORED = Unserved(is_ignored=True)
REFUSED = Unserved()


def only(*no_ops: Any) -> Unserved:
    """A field that is refused with any other value than these."""
    return Unserved(no_ops)


Fields = Mapping[str, Unserved]

REQUEST: Fields = {
    # What OpenAI's API does beside answering: accounting, caching, queueing, storing.
    "metadata": IGNORED,
    "prediction": IGNORED,  # a guess of the answer that makes it faster, and no other
    "prompt_cache_key": IGNORED,
    "prompt_cache_options": IGNORED,
    "prompt_cache_retention": IGNORED,
    "safety_identifier": IGNORED,
    "service_tier": IGNORED,
    "store": IGNORED,
    "user": IGNORED,
    # What its models do beside writing text.
    "audio": REFUSED,
    "function_call": only("none", "auto"),
    "functions": only([]),
    "modalities": only(["text"]),
    "moderation": REFUSED,
    "parallel_tool_calls": IGNORED,  # there are no tools to call
    "reasoning_effort": only("none"),
    "suffix": only(""),
    "tool_choice": only("none", "auto"),
    "tools": only([]),
    "verbosity": only("medium"),
    "web_search_options": REFUSED,
    # vLLM's, and those of clients made for it.
    "add_generation_prompt": only(True),
    "bad_words": only([]),
    "chat_template_kwargs": only({}),
    "continue_final_message": only(False),
    "documents": only([]),
    "include_stop_str_in_output": only(False),
    "length_penalty": only(1),
    "name": IGNORED,
    "request_id": IGNORED,
    "session_id": IGNORED,
    "skip_special_tokens": only(True),
    "spaces_between_special_tokens": only(True),
    "use_beam_search": only(False),
}
"""Of a whole request."""

STREAM_OPTIONS: Fields = {"include_obfuscation": only(False)}

STRUCTURED_OUTPUTS: Fields = {
    "disable_additional_properties": only(False),
    "disable_any_whitespace": IGNORED,  # JSON is on one line in any case
    "disable_fallback": IGNORED,  # there is none
}

MESSAGE: Fields = {
    # Descriptions of a message.
    "annotations": IGNORED,
    "cache_control": IGNORED,
    "id": IGNORED,
    "name": IGNORED,
    "provider_specific_fields": IGNORED,
    # What a model thought before an earlier answer: a chat goes on from the answer alone.
    "reasoning": IGNORED,
    "reasoning_content": IGNORED,
    "reasoning_details": IGNORED,
    "thinking_blocks": IGNORED,
    # Content that is no text.
    "audio": REFUSED,
    "function_call": REFUSED,
    "images": only([]),
    "refusal": only(""),
    "tool_calls": only([]),
}
"""Of a message. An answer comes back as the next request's message with all its fields."""

TEXT_PART: Fields = {
    "annotations": IGNORED,
    "cache_control": IGNORED,
    "id": IGNORED,
    "prompt_cache_breakpoint": IGNORED,
}


class Open(BaseModel):
    """Base class of bodies with fields that are not declared, as OpenAI's clients send them."""

    model_config = ConfigDict(extra="allow")

    unserved: ClassVar[Fields] = {}

    def refuse_unsupported(self, place: str = "") -> None:
        """Raises `UnsupportedParameter` for a field that would change the answer.

        `place` is this object's place in the body, as in `messages[1].`.
        """
        for name, value in (self.model_extra or {}).items():
            field = self.unserved.get(name)
            if value is None or (field is not None and field.allows(value)):
                continue
            name = name if _is_plain(name) else "?"
            raise UnsupportedParameter(place + name, self._refusal(place + name, name, field))

    def _refusal(self, where: str, name: str, field: Unserved | None) -> str:
        if field is not None:
            values = " or ".join(json.dumps(value) for value in field.no_ops)
            or_send = f" or send {values}" if values else ""
            return f"`{where}` is not supported by this server: leave it out{or_send}"
        fields = [field.alias or name for name, field in type(self).model_fields.items()]
        return f"`{where}` is not supported by this server{meant(name, fields)}"


def _is_plain(name: str) -> bool:
    """Whether a client's field name is harmless enough to be returned in an error."""
    return name.isascii() and name.isidentifier() and len(name) <= 64
