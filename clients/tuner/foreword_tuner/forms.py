"""Forms of an example: which of its fields are the question, and which is the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from foreword_tuner.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = {"system": "system", "human": "user", "gpt": "assistant"}
"""ShareGPT's names of the roles; it has the usual ones too."""
_CALLS = ("tools", "functions", "tool_calls", "function_call")
_MAX_SHOWN_CHARS = 120

Needs = Literal["completion", "reference", "nothing"]
"""The answer that an example must have: a completion to train on, a reference to compare with
(also a list, `references`), or nothing."""


@dataclass(frozen=True, slots=True)
class Line:
    """One example: either a prompt with fields for a template, or a chat up to the answer."""

    number: int
    """Line number in the file, from 1."""
    completion: str
    prompt: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    messages: tuple[dict[str, str], ...] = ()
    references: tuple[str, ...] = ()
    """More right answers, beside the completion if there is one."""

    def question(self, fields: Collection[str] = ()) -> str:
        """Return a key that is equal for equal questions: prompt, chat and the named `fields`."""
        asked = {name: self.fields.get(name) for name in sorted(fields)}
        return json.dumps([self.prompt, asked, self.messages])

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers."""
        return (self.completion, *self.references) if self.completion else self.references


@dataclass(frozen=True, slots=True)
class _Form:
    """A form, known by the names of its fields."""

    question: str
    answer: str | None
    """None: the answer is the end of the question's chat."""
    read: Callable[[Mapping[str, Any]], str | list[dict[str, str]]]
    """Return the prompt, or the messages. Raises `DataError`."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.question,) if self.answer is None else (self.question, self.answer)

    def is_clear(self, row: Mapping[str, Any]) -> bool:
        """Whether no other field could be the prompt of a template, or the answer."""
        others = {"completion"} if self.answer is None else {"prompt", "completion"}
        return self.question == "prompt" or not others & row.keys()


def parse(value: object, number: int, needs: Needs) -> Line:
    """Parse an example. Raises `DataError`, without the line number."""
    if not isinstance(value, dict):
        raise DataError("not a JSON object")
    row = {name: given for name, given in value.items() if given is not None}
    form = _form_of(row, needs)
    question = form.read(row)
    references = _references(row) if needs == "reference" else ()
    if isinstance(question, str):
        completion = "" if form.answer is None else _answer(row, form.answer, needs)
        fields = _fields(row, form) | {"prompt": question}
        return Line(number, completion, question, fields, references=references)
    if question[-1]["role"] == "assistant":
        *chat, last = question
        return _chat(number, chat, last["content"], references)
    if needs != "completion" and (references or needs == "nothing"):
        return _chat(number, question, "", references)
    raise DataError("the last message is not the assistant's")


def _chat(
    number: int, chat: Sequence[dict[str, str]], completion: str, references: tuple[str, ...]
) -> Line:
    if not chat:
        raise DataError("a chat of one message")
    return Line(number, completion, chat[-1]["content"], {}, tuple(chat), references)


def _form_of(row: Mapping[str, Any], needs: Needs) -> _Form:
    """Return the only form that fits. Raises `DataError`."""
    found = [form for form in _FORMS if form.question in row]
    if not found:
        questions = ", ".join(f"`{form.question}`" for form in _FORMS)
        raise DataError(f"no {questions}: it has {_shown(row) or 'no fields'}")
    complete = [form for form in found if _has_answer(row, form, needs)]
    if not complete:
        raise DataError(f"no `{found[0].answer}`")
    if len(complete) > 1 and needs == "nothing":  # Alpaca has a `text`, too
        complete = [form for form in complete if form.question != "text"]
    if len(complete) > 1 or not complete[0].is_clear(row):
        raise DataError(f"ambiguous: what is asked, and what is the answer? it has {_shown(row)}")
    return complete[0]


def _has_answer(row: Mapping[str, Any], form: _Form, needs: Needs) -> bool:
    if form.answer is None or needs == "nothing":
        return True
    return form.answer in row or (needs == "reference" and "references" in row)


def _shown(row: Mapping[str, Any]) -> str:
    """Return the names of the fields, cut and in ASCII."""
    names = ", ".join(f"`{name}`" for name in row)
    return names.encode("ascii", "backslashreplace").decode()[:_MAX_SHOWN_CHARS]


def _answer(row: Mapping[str, Any], name: str, needs: Needs) -> str:
    if needs == "nothing" or (needs == "reference" and name not in row):
        return ""
    if isinstance(row[name], int | float) and name == "label":
        raise DataError("`label` is a number: write what it stands for")
    return _text(row, name)


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = row.get("references", [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise DataError("`references` is not a list of strings")
    if "references" in row and not found:
        raise DataError("`references` is empty")
    return tuple(_text({"references": text}, "references") for text in found)


def _fields(row: Mapping[str, Any], form: _Form) -> dict[str, str]:
    """Return the texts of a row that a template may name."""
    fields = {k: v for k, v in row.items() if isinstance(v, str) and k != form.answer}
    for name, text in fields.items():
        _check_whole(name, text)
    return fields


def _text(value: Mapping[str, Any], name: str) -> str:
    if name not in value:
        raise DataError(f"no `{name}`")
    text = value[name]
    if not isinstance(text, str):
        raise DataError(f"`{name}` is not a string")
    if not text.strip():
        raise DataError(f"`{name}` is empty")
    _check_whole(name, text)
    return text


def _check_whole(name: str, text: str) -> None:
    """Refuse lone surrogates, which JSON can escape and a tokenizer cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        shown = name.encode("ascii", "backslashreplace").decode()
        raise DataError(f"`{shown}` has a lone surrogate at {exc.start + 1}") from None


# --- one reader per form ---


def _read_prompt(row: Mapping[str, Any]) -> str:
    return _text(row, "prompt")


def _read_alpaca(row: Mapping[str, Any]) -> str:
    """Return the instruction, and after an empty line the input if there is one."""
    instruction = _text(row, "instruction")
    if row.get("history"):
        raise DataError("`history` is not read: write a chat as `messages`")
    found = row.get("input", "")
    if not isinstance(found, str):
        raise DataError("`input` is not a string")
    return f"{instruction}\n\n{found}" if found.strip() else instruction


def _read_text(row: Mapping[str, Any]) -> str:
    return _text(row, "text")


def _read_messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    return _messages(row, "messages")


def _read_sharegpt(row: Mapping[str, Any]) -> list[dict[str, str]]:
    chat = _messages(row, "conversations")
    if row.get("system"):
        chat.insert(0, {"role": "system", "content": _text(row, "system")})
    return chat


def _messages(row: Mapping[str, Any], name: str) -> list[dict[str, str]]:
    _refuse_calls(row)
    found = row[name]
    if not isinstance(found, list) or not found:
        raise DataError(f"`{name}` is not a list of messages")
    return [_message(message) for message in found]


def _message(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise DataError("a message is not a JSON object")
    _refuse_calls(value)
    if "from" in value:
        speaker = value["from"]
        role = _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else None
        content = _text(value, "value")
    else:
        role, content = value.get("role"), None
    if role not in ROLES:
        raise DataError(f"a message's role is one of {', '.join(ROLES)}")
    return {"role": role, "content": content or _text(value, "content")}


def _refuse_calls(value: Mapping[str, Any]) -> None:
    for name in _CALLS:
        if value.get(name):
            raise DataError(f"`{name}`: calls of functions cannot be trained")


_FORMS = (
    _Form("prompt", "completion", _read_prompt),
    _Form("instruction", "output", _read_alpaca),
    _Form("text", "label", _read_text),
    _Form("messages", None, _read_messages),
    _Form("conversations", None, _read_sharegpt),
)
