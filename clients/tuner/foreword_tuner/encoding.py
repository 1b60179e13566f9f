"""Lines to token ids, exactly as the server makes them of a task's template or chat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from foreword_tuner.data import Line
from foreword_tuner.errors import DataError, TunerError

PLAIN = "{prompt}"
_LINE = "{prompt}\n"
"""So that a completion is a line of its own, without a space that the answer would begin with."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one line."""

    number: int
    prompt_ids: list[int]
    completion_ids: list[int]
    """With the token that ends it."""

    @property
    def num_tokens(self) -> int:
        """What a forward computes: the last token is only ever a target."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1


class Encoder:
    """A base model's tokenizer, with a task's template around every prompt, or chat."""

    def __init__(self, tokenizer: Any, eos_id: int, *, template: str, chat: bool) -> None:
        self._tokenizer = tokenizer
        self._eos_id = eos_id
        self._template = template
        self._chat = chat
        self.fields = fields_of(template)
        self._specials = [text for text in tokenizer.all_special_tokens if text]

    def examples(
        self, lines: Iterable[Line], *, max_tokens: int
    ) -> tuple[list[Example], list[str]]:
        """Those that can be trained on, and what is wrong with the others, by line."""
        examples, problems = [], []
        for line in lines:
            try:
                example = self.example(line)
                if example.num_tokens > max_tokens:
                    raise DataError(f"{example.num_tokens} tokens, the limit is {max_tokens}")
                examples.append(example)
            except DataError as exc:
                problems.append(f"line {line.number}: {exc}")
        return examples, problems

    def example(self, line: Line) -> Example:
        """Raises `DataError`."""
        self._check_specials(line.completion)
        completion = self._ids(line.completion, add_special_tokens=False)
        return Example(line.number, self.prompt_ids(line), [*completion, self._eos_id])

    def prompt_ids(self, line: Line) -> list[int]:
        """Of everything before the completion. Raises `DataError`."""
        if line.messages:
            if not self._chat:
                raise DataError("`messages` need --chat")
            if self._template != PLAIN:
                raise DataError("`messages` and --template do not go together")
            return self._chat_ids(line.messages)
        text = self.render(line)
        if self._chat:
            return self._chat_ids([{"role": "user", "content": text}])
        return self._ids(text, add_special_tokens=True)

    def render(self, line: Line) -> str:
        """The template filled in. Raises `DataError`."""
        if missing := sorted(self.fields - line.fields.keys()):
            raise DataError(f"the template needs the fields: {', '.join(missing)}")
        for name in self.fields:
            self._check_specials(line.fields[name])
        return self._template.format_map(dict(line.fields))

    def shots(self, lines: Sequence[Line]) -> list[int]:
        """The lines one after another, questions and answers, as few-shot prompts have them."""
        if self._chat:
            examples = map(self.example, lines)
            return [i for one in examples for i in (*one.prompt_ids, *one.completion_ids)]
        text = "".join(f"{self.render(line)}{line.completion}\n\n" for line in lines)
        return self._ids(text, add_special_tokens=True)

    def _chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        for message in messages:
            self._check_specials(message["content"])
        if not self._tokenizer.chat_template:
            raise TunerError("the base model has no chat template: use --template")
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return self._ids(text, add_special_tokens=False)

    def _check_specials(self, text: str) -> None:
        """The server never reads one out of a user's words, so none may be trained on as such."""
        for special in self._specials:
            if special in text:
                raise DataError(f"holds the special token {special}")

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids
        return ids


def fields_of(template: str) -> frozenset[str]:
    """The names in its braces. Raises `TunerError` where the server would refuse it."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError:
        raise TunerError("--template: a brace without its partner; {{ is a brace") from None
    for _, name, spec, conversion in pieces:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise TunerError("--template: fields are plain names such as {prompt}")
    return frozenset(name for _, name, _, _ in pieces if name is not None)


def template_or_default(template: str | None, *, chat: bool) -> str:
    """As a shell brings it, with a new line as two characters, or what suits most data."""
    if template is None:
        return PLAIN if chat else _LINE
    return template.replace("\\n", "\n")
