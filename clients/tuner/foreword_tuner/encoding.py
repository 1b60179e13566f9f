"""Encoding of lines as token ids, exactly as the server encodes prompts of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from foreword_tuner.errors import DataError, TunerError
from foreword_tuner.forms import Line

PLAIN = "{prompt}"
_LINE = "{prompt}\n"
"""Puts a completion on a line of its own, so that it needs no leading space."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one line."""

    number: int
    prompt_ids: list[int]
    completion_ids: list[int]
    """With the end-of-sequence token."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens that a forward pass computes. The last token is only a target."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1


class Encoder:
    """A base model's tokenizer with a task's template or chat format."""

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
        """Encode lines. Returns the examples, and one problem for each line that has one."""
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
        """Encode a line. Raises `DataError`."""
        self._check_specials(line.completion)
        completion = self._ids(line.completion, add_special_tokens=False)
        return Example(line.number, self.prompt_ids(line), [*completion, self._eos_id])

    def prompt_ids(self, line: Line) -> list[int]:
        """Encode what precedes the completion. Raises `DataError`."""
        if line.messages:
            if not self._chat:
                raise DataError("`messages` need --chat")
            if self._template != PLAIN:
                raise DataError("`messages` exclude --template")
            return self._chat_ids(line.messages)
        text = self.render(line)
        if self._chat:
            return self._chat_ids([{"role": "user", "content": text}])
        return self._ids(text, add_special_tokens=True)

    def render(self, line: Line) -> str:
        """Fill in the template. Raises `DataError`."""
        if missing := sorted(self.fields - line.fields.keys()):
            raise DataError(f"the template needs the fields: {', '.join(missing)}")
        for name in self.fields:
            self._check_specials(line.fields[name])
        return self._template.format_map(dict(line.fields))

    def shots(self, lines: Sequence[Line]) -> list[int]:
        """Encode lines as a few-shot prompt: questions and answers one after another."""
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
        """Refuse special tokens in text: the server encodes them as plain text. Raises
        `DataError`."""
        for special in self._specials:
            if special in text:
                raise DataError(f"contains the special token {special}")

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids
        return ids


def fields_of(template: str) -> frozenset[str]:
    """Return the field names of a template. Raises `TunerError` if the server would refuse it."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError:
        raise TunerError("--template: unmatched brace; write {{ for a literal brace") from None
    for _, name, spec, conversion in pieces:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise TunerError("--template: fields are plain names such as {prompt}")
    return frozenset(name for _, name, _, _ in pieces if name is not None)


def template_or_default(template: str | None, *, chat: bool) -> str:
    """Return the template, with `\\n` replaced by a newline, or the default one."""
    if template is None:
        return PLAIN if chat else _LINE
    return template.replace("\\n", "\n")
